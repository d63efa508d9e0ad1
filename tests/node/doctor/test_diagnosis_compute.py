"""What holds the compute process, and its device's figures, as people read them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gennode.engine.child.jail import Jail
from gennode.node.doctor.diagnosis import diagnose
from gennode.node.doctor.diagnosis_compute import diagnose_compute
from gennode.node.doctor.facts import Facts, Failure
from gennode.node.doctor.finding import Finding, Level, exit_code
from tests.node.healthy import COMPUTE, FACTS, REPORT

MISSING = Failure("there is no CUDA device", "use the device cpu", 7)


def found(facts: Facts, check: str) -> Finding:
    """The one finding of a check."""
    (finding,) = [each for each in diagnose_compute(facts) if each.check == check]
    return finding


def test_figures_are_told_in_units() -> None:
    assert found(FACTS, "compute process").words == (
        "it reads its model and nothing else (landlock abi 4, seccomp)"
    )
    assert found(FACTS, "device").words == "CPU (cpu), 12 GiB of 16 GiB free"
    assert found(FACTS, "speed").words == (
        "reads weights at 37.9 GB/s and computes 202 GFLOP/s in float32"
    )
    assert found(FACTS, "layer").words == (
        "rows through the products of one of a 1.1 B model (168 MiB): "
        "1 in 5 ms, 8 in 9.9 ms, 32 in 19 ms, 128 in 56.3 ms"
    )


def test_an_accelerator_tells_of_its_copies() -> None:
    report = replace(
        REPORT,
        device="cuda:1",
        name="NVIDIA A10",
        flops_per_s=6e13,
        to_device_bytes_per_s=1.2e10,
        from_device_bytes_per_s=9e9,
    )
    compute = replace(COMPUTE, report=report)
    facts = replace(FACTS, wanted=replace(FACTS.wanted, device="cuda:1"), compute=compute)
    assert found(facts, "device").words.startswith("NVIDIA A10 (cuda:1)")
    assert "60 TFLOP/s" in found(facts, "speed").words
    assert "to it at 12 GB/s, and back at 9 GB/s" in found(facts, "speed").words
    assert "gpu" not in {each.check for each in diagnose_compute(facts)}


@pytest.mark.parametrize(
    ("jail", "words"),
    [
        (Jail(0, True, "no landlock, seccomp"), "lsm="),
        (Jail(0, False, "darwin has no way for it"), "user of its own"),
        (Jail(4, False, "landlock abi 4, no seccomp"), "SECCOMP_FILTER"),
    ],
)
def test_a_process_that_nothing_holds_is_a_warning(jail: Jail, words: str) -> None:
    facts = replace(FACTS, compute=replace(COMPUTE, jail=jail))
    finding = found(facts, "compute process")
    assert finding.level is Level.WARN
    assert words in finding.fix
    assert jail.words in finding.words
    assert exit_code(diagnose(facts)) == 0


def test_a_device_that_is_missing_fails_with_its_own_code() -> None:
    facts = replace(FACTS, wanted=replace(FACTS.wanted, device="cuda"), compute=MISSING)
    finding = found(facts, "device")
    assert (finding.level, finding.fix) == (Level.FAIL, MISSING.fix)
    assert exit_code(diagnose(facts)) == 7
    assert found(facts, "compute process").level is Level.SKIP
    assert "landlock abi 4" in found(facts, "compute process").words


def test_a_gpu_is_mentioned_to_those_who_do_not_ask_for_it() -> None:
    assert "--gpu" in found(FACTS, "gpu").words
    finding = found(replace(FACTS, gpu=MISSING), "gpu")
    assert (finding.level, finding.words) == (Level.OK, f"not asked for; {MISSING.words}")


def test_what_was_not_looked_at_has_no_figures() -> None:
    checks = {each.check for each in diagnose_compute(replace(FACTS, compute=None))}
    assert checks == {"compute process", "gpu"}


@pytest.mark.parametrize(
    "wrong",
    [
        {"flops_per_s": float("nan")},
        {"read_bytes_per_s": float("inf")},
        {"layer_times_s": {1: 0.0}},
        {"layer_times_s": {}},
        {"layer_times_s": dict.fromkeys(range(100), 1.0)},
        {"to_device_bytes_per_s": -1.0},
        {"name": "\x1b[31mCPU"},
        {"name": "CPU" * 100},
    ],
    ids=str,
)
def test_a_report_of_nothing_that_there_is_is_not_sound(wrong: dict[str, object]) -> None:
    assert REPORT.is_sound()
    assert not replace(REPORT, **wrong).is_sound()  # type: ignore[arg-type]
