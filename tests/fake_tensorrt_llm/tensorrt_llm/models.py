from __future__ import annotations

import json


class PretrainedConfig:
    def __init__(self, values: dict[str, object]):
        self.values = values

    @classmethod
    def from_json_file(cls, config_file: str) -> PretrainedConfig:
        with open(config_file) as file:
            return cls(json.load(file))
