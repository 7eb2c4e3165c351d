"""The names that a plug-in reads, from its sources."""

import ast

from raylaunch.node.probe.ask_names import read_keys, read_keys_below, read_variables

SOURCE = ast.parse(
    """
import os
class EplbConfig:
    _defaults = {"dynamic_eplb": False, "expert_map_path": None}
    def __init__(self, user_config):
        self.step = user_config.get("step", 1)
class FusionConfig:
    def __init__(self, ops: bool = True):
        pass
def read(vllm_config, additional_config, envs):
    eplb = additional_config.get("eplb_config", {})
    a = EplbConfig(eplb)
    fusion = vllm_config.additional_config.get("fusion", {})
    b = FusionConfig(**fusion)
    if "switch" in vllm_config.additional_config:
        c = vllm_config.additional_config["level"]
    d = look_up(additional_config, "by_helper", "VLLM_ASCEND_BY_HELPER")
    e = os.getenv("DYNAMIC_EPLB"), os.environ["HCCL_X"], os.environ.get("VLLM_Y", "lower")
    other.get("not_a_key")
"""
)


def test_every_form_of_a_key_is_read():
    assert set(read_keys(SOURCE)) == {"eplb_config", "fusion", "switch", "level", "by_helper"}


def test_the_keys_below_come_from_the_class_that_takes_them():
    assert read_keys_below(SOURCE) == {
        "eplb_config": ["dynamic_eplb", "expert_map_path", "step"],
        "fusion": ["ops"],
    }


def test_every_form_of_a_variable_is_read():
    assert set(read_variables(SOURCE)) == {"DYNAMIC_EPLB", "HCCL_X", "VLLM_Y"}
