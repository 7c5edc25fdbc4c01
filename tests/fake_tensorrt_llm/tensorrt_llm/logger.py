class logger:
    @staticmethod
    def set_level(level: str) -> None:
        print(f"log level {level}")
