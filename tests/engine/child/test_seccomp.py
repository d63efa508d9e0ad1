"""The filter, run by a small interpreter of classic BPF, judges calls as it should."""

from __future__ import annotations

import errno

import pytest

from gennode.engine.child.seccomp import REFUSED, program

X86, ARM = 0xC000003E, 0xC00000B7
ALLOWED = 0x7FFF0000
EPERM, ENOSYS = (0x00050000 | number for number in (errno.EPERM, errno.ENOSYS))
LOAD, EQUAL, AT_LEAST, HAS_BITS, RETURN = 0x20, 0x15, 0x35, 0x45, 0x06


def verdict(index: int, architecture: int, number: int, first: int = 0) -> int:
    """What the filter returns for a call."""
    words = {0: number, 4: architecture, 16: first}
    instructions, at, value = program(index), 0, 0
    while True:
        code, if_true, if_false, operand = instructions[at]
        at += 1
        if code == RETURN:
            return operand
        if code == LOAD:
            value = words[operand]
            continue
        holds = {EQUAL: value == operand, AT_LEAST: value >= operand,
                 HAS_BITS: bool(value & operand)}[code]  # fmt: skip
        at += if_true if holds else if_false


@pytest.mark.parametrize(("index", "architecture"), [(0, X86), (1, ARM)])
def test_each_listed_call_is_refused_and_no_other(index: int, architecture: int) -> None:
    refused = {numbers[index] for numbers in REFUSED.values()} - {-1}
    clone = (56, 220)[index]
    for number in range(500):
        expected = EPERM if number in refused | {clone} else ALLOWED
        expected = ENOSYS if number == 435 else expected
        assert verdict(index, architecture, number) == expected, number
    assert verdict(index, architecture, clone, 0x3D0F00) == ALLOWED  # what pthread_create asks


def test_calls_by_other_tables_are_refused() -> None:
    assert verdict(0, ARM, 0) == EPERM
    assert verdict(1, X86, 63) == EPERM
    assert verdict(0, 0x40000003, 3) == EPERM  # 32-bit x86
    assert verdict(0, X86, 0x40000000 | 1) == EPERM


def test_jumps_fit_and_end() -> None:
    for index in (0, 1):
        instructions = program(index)
        assert instructions[-1][0] == RETURN
        assert len(instructions) < 4096  # the kernel's limit
        assert all(max(if_true, if_false) < 256 for _, if_true, if_false, _ in instructions)
