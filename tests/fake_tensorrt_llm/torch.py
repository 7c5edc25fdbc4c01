class version:
    cuda = "13.1"


class cuda:
    @staticmethod
    def is_available() -> bool:
        return True

    @staticmethod
    def get_device_capability(index: int) -> tuple[int, int]:
        return 8, 0

    @staticmethod
    def get_device_name(index: int) -> str:
        return "Fake A100"
