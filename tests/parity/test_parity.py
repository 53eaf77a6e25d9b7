"""Every golden case against our implementation, through the weight importer."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from tests.parity import (  # noqa: F401  (they register themselves)
    alignment_adapters,
    contrastive_adapters,
    data_adapters,
    head_adapters,
    internvideo2_adapters,
    internvideo2_classifier_adapters,
    metric_adapters,
    model_adapters,
    retrieval_adapters,
    teacher_adapters,
    text_adapters,
    umt_adapters,
    uniformerv2_adapters,
    viclip_adapters,
)
from tests.parity.cases import Case, discover, find_adapter
from tests.parity.listing import WITHOUT, summary

CASES = discover()


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.group}/{case.name}")
def test_case(case: Case):
    check = find_adapter(case)
    if check is None:
        pytest.skip(f"{WITHOUT}{case.group}/{case.name}")
    check(case)


def test_cases_without_an_adapter_are_listed_and_counted():
    def skipped(reason: str) -> SimpleNamespace:
        return SimpleNamespace(longrepr=("test_parity.py", 32, f"Skipped: {reason}"))

    found = [skipped(f"{WITHOUT}video_language/{name}") for name in ("beats_tiny", "asr")]
    assert summary([*found, skipped("needs the TPU compiler"), SimpleNamespace(longrepr="")]) == [
        "parity: golden cases that no adapter compares: 2",
        "video_language/asr",
        "video_language/beats_tiny",
    ]
    assert summary([skipped("slow")]) == []


def test_the_folder_holds_cases():
    assert CASES, "IVJ_GOLDEN_DIR holds no case.json"
