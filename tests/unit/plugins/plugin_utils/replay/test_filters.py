# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""Argument filters against the rules of the real agent. A rule id such as R2.3.12 names the behaviour that a table checks."""

from __future__ import annotations

from typing import Any

import pytest

from ansible_collections.apiary.tetragon.plugins.plugin_utils.replay.filters import (
    ADDRESS_OPERATORS,
    CAPABILITY_NAMES,
    CAPABILITY_TYPES,
    FILE_TYPE_OPERATORS,
    INTEGERS,
    NUMBER_OPERATORS,
    PATH_TYPES,
    SOCKET_OPERATORS,
    SOCKET_TYPES,
    STRING_TYPES,
    SUBSTRING_OPERATORS,
    TEXT_OPERATORS,
    Unsupported,
    capability_bit,
    compile_filter,
    parse_integer,
)
from ansible_collections.apiary.tetragon.plugins.plugin_utils.replay.records import FilePath, Opaque, ReadError, Socket, Value
from ansible_collections.apiary.tetragon.plugins.plugin_utils.replay.target import DEFAULT, Target
from ansible_collections.apiary.tetragon.tests.unit.plugins.plugin_utils.samples import show

YES, NO, UNKNOWN = True, False, None
MAIN = Target(version=(1, 8))


def answer(kind: str, operator: str, values: list[str], value: Value, target: Target = DEFAULT) -> bool | None:
    """What a filter says of a value."""
    return compile_filter(operator, values, kind, target)(value).value


# --- numbers --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("0", 0),
        ("7", 7),
        ("-7", -7),
        ("+7", 7),
        ("0x1F", 31),
        ("-0x10", -16),
        ("010", 8),
        ("-010", -8),
        ("0b101", 5),
        ("0o17", 15),
        ("00", 0),
    ],
    ids=show,
)
def test_numbers_are_read_as_the_agent_reads_them(text: str, number: int) -> None:  # R2.3.8
    assert parse_integer(text) == number


@pytest.mark.parametrize(
    "text",
    [
        "", "x", "1.5", "0x", "09", "1e3", "12a", "five", "-",
        "--5",
        "+-5",
        " 5",
    ],
)  # fmt: skip
def test_other_texts_are_no_numbers(text: str) -> None:
    with pytest.raises(Unsupported):
        compile_filter("Equal", [text], "int64")


SIGNED_32, UNSIGNED_32, SIGNED_64, UNSIGNED_64 = (
    ("int", "int32", "sint32"),
    ("uint32",),
    ("int64", "sint64", "long"),
    ("uint64", "ulong"),
)
SIGNED_SMALL, UNSIGNED_SMALL = ("int16", "sint16", "int8", "sint8"), ("uint16", "uint8")


@pytest.mark.parametrize("kind", sorted(INTEGERS))
@pytest.mark.parametrize(
    ("operator", "values", "value", "expected"),
    [
        ("Equal", ["5"], 5, YES),
        ("Equal", ["5"], 6, NO),
        ("Equal", ["0"], 0, YES),
        ("NotEqual", ["0"], 0, NO),
        ("Equal", ["4", "5"], 5, YES),
        ("Equal", ["0x5"], 5, YES),
        ("Equal", ["010"], 8, YES),
        ("Equal", ["0b11"], 3, YES),
        ("NotEqual", ["5"], 6, YES),
        ("NotEqual", ["5"], 5, NO),
        ("NotEqual", ["4", "5"], 5, NO),
        ("NotEqual", ["4", "5"], 6, YES),
        ("GT", ["5"], 6, YES),
        ("GT", ["5"], 5, NO),
        ("GT", ["9", "5"], 6, YES),
        ("GreaterThan", ["5"], 6, YES),
        ("LT", ["5"], 4, YES),
        ("LT", ["5"], 5, NO),
        ("LT", ["1", "5"], 4, YES),
        ("LessThan", ["5"], 4, YES),
        ("Mask", ["6"], 2, YES),
        ("Mask", ["6"], 1, NO),
        ("Mask", ["6"], 7, YES),
        ("Mask", ["1", "8"], 8, YES),
        ("Mask", ["0"], 7, NO),
        ("Mask", ["0"], 0, NO),
        ("InRange", ["2:4"], 2, YES),
        ("InRange", ["2:4"], 4, YES),
        ("InRange", ["2:4"], 5, NO),
        ("InRange", ["2:4", "8:9"], 8, YES),
        ("InRange", ["4:2"], 3, NO),
        ("InRange", ["0x2:010"], 8, YES),
        ("NotInRange", ["2:4"], 5, YES),
        ("NotInRange", ["2:4"], 3, NO),
        ("NotInRange", ["2:4", "8:9"], 9, NO),
        ("NotInRange", ["4:2"], 3, YES),
        ("InMap", ["5"], 5, YES),
        ("InMap", ["5"], 6, NO),
        ("InMap", ["1", "2", "3", "4", "5", "6"], 6, YES),
        ("InMap", ["2:4"], 3, YES),
        ("InMap", ["4:2"], 3, YES),
        ("InMap", ["2:4"], 5, NO),
        ("NotInMap", ["5"], 6, YES),
        ("NotInMap", ["5"], 5, NO),
        ("NotInMap", ["4:2"], 3, NO),
    ],
    ids=show,
)  # R1.4, R2.3.8, R2.3.9, R2.3.13
def test_small_positive_numbers_compare_alike_in_every_type(
    kind: str, operator: str, values: list[str], value: int, expected: bool
) -> None:
    assert answer(kind, operator, values, value) is expected


def rows(*tables: tuple[tuple[str, ...], list[Any]]) -> list[Any]:
    """A table for each of several types."""
    return [(kind, *row) for kinds, table in tables for kind in kinds for row in table]


@pytest.mark.parametrize(
    ("kind", "operator", "values", "value", "expected"),
    rows(
        (
            SIGNED_32 + SIGNED_64,
            [
                ("Equal", ["-1"], -1, YES),
                ("NotEqual", ["-1"], -1, NO),
                ("GT", ["-5"], -4, YES),
                ("GT", ["-5"], -6, NO),
                ("GT", ["0"], -1, NO),
                ("LT", ["0"], -1, YES),
                ("LT", ["-5"], 5, NO),
                ("InRange", ["-10:10"], -5, YES),
                ("InRange", ["-10:10"], 5, YES),
                ("InRange", ["-10:10"], -11, NO),
                ("NotInRange", ["-10:10"], -5, NO),
                ("Mask", ["0x4"], -4, YES),
            ],
        ),
        (
            SIGNED_32,
            [
                ("Equal", ["5"], 0x1_0000_0005, YES),
                ("Equal", ["-1"], 0xFFFF_FFFF, YES),
                ("GT", ["0"], 0x8000_0000, NO),
                ("GT", ["0"], 0x4000_0000, YES),
                ("LT", ["0"], 0x8000_0000, YES),
                ("InMap", ["-5"], -5, NO),
                ("NotInMap", ["-5"], -5, YES),
                ("InMap", ["4294967291"], -5, YES),
                ("InMap", ["-5:5"], -3, NO),
                ("InMap", ["-5:5"], 3, YES),
            ],
        ),
        (
            UNSIGNED_32,
            [
                ("GT", ["0"], 0x8000_0000, YES),
                ("LT", ["0x80000000"], 1, YES),
                ("InRange", ["0x7fffffff:0xffffffff"], 0xFFFF_FFFE, YES),
                ("Equal", ["5"], 0x1_0000_0005, YES),
                ("Mask", ["0x80000000"], 0x8000_0000, YES),
                ("InMap", ["5"], 0x1_0000_0005, YES),
            ],
        ),
        (
            SIGNED_64,
            [
                ("Equal", ["5"], 0x1_0000_0005, NO),
                ("Equal", ["0x100000005"], 0x1_0000_0005, YES),
                ("GT", ["4294967296"], 0x1_0000_0001, YES),
                ("LT", ["0"], -(1 << 63), YES),
                ("GT", ["0"], 1 << 62, YES),
                ("InMap", ["-5"], -5, YES),
                ("NotInMap", ["-5"], -5, NO),
                ("InMap", ["-9:-2"], -5, YES),
                ("InMap", ["-5:5"], -3, YES),
                ("InMap", ["-5:5"], 3, YES),
                ("NotInMap", ["-5:5"], 0, NO),
                ("InMap", ["-5:5"], 6, NO),
            ],
        ),
        (
            UNSIGNED_64,
            [
                ("Equal", ["18446744073709551615"], (1 << 64) - 1, YES),
                ("Equal", ["18446744073709551615"], -1, YES),  # recorded as int64
                ("GT", ["18446744073709551614"], -1, YES),
                ("InMap", ["18446744073709551615"], -1, YES),
                ("GT", ["9223372036854775807"], 1 << 63, YES),
                ("LT", ["1"], 1 << 63, NO),
                ("InRange", ["1:18446744073709551615"], 1 << 63, YES),
                ("Mask", ["0x8000000000000000"], 1 << 63, YES),
                ("Equal", ["5"], 0x1_0000_0005, NO),
            ],
        ),
        (("syscall64",), [("GT", ["5"], 1 << 63, YES), ("LT", ["0"], 1 << 63, NO), ("Equal", ["2147483653"], 5 | 1 << 31, YES)]),
        (
            ("size_t",),
            [
                ("Equal", ["7"], 0x1_0000_0007, YES),  # R2.3.11
                ("NotEqual", ["7"], 0x1_0000_0007, NO),
                ("GT", ["7"], 0x1_0000_0007, NO),
                ("GT", ["7"], 0x8000_0000, YES),
                ("LT", ["7"], 0x1_0000_0006, YES),
                ("InRange", ["1:9"], 0x7_0000_0005, YES),
                ("InMap", ["7"], 0x1_0000_0007, YES),
                ("Mask", ["1"], 0x1_0000_0000, NO),
            ],
        ),
        (
            SIGNED_SMALL,
            [
                ("Equal", ["-5"], -5, NO),  # R2.3.12
                ("NotEqual", ["-5"], -5, YES),
                ("LT", ["0"], -5, NO),
                ("GT", ["0"], -5, YES),
                ("GT", ["100"], -1, YES),
                ("InRange", ["-10:10"], 5, NO),
                ("InRange", ["-10:10"], -5, NO),
                ("NotInRange", ["-10:10"], 5, YES),
                ("InMap", ["-5"], -5, NO),  # R2.3.10
                ("NotInMap", ["-5"], -5, YES),
                ("Equal", ["65541"], 5, NO),
                ("NotEqual", ["65541"], 5, YES),
            ],
        ),
        (("int16", "sint16"), [("InMap", ["65531"], -5, YES), ("Equal", ["65531"], -5, YES), ("Equal", ["5"], 65541, YES)]),
        (("int8", "sint8"), [("InMap", ["251"], -5, YES), ("Equal", ["251"], -5, YES), ("Equal", ["5"], 261, YES)]),
        (
            UNSIGNED_SMALL,
            [("Equal", ["200"], 200, YES), ("GT", ["100"], 200, YES), ("LT", ["100"], 200, NO), ("InRange", ["100:250"], 200, YES)],
        ),
    ),
    ids=show,
)
def test_a_type_has_its_own_width_and_sign(kind: str, operator: str, values: list[str], value: int, expected: bool) -> None:
    assert answer(kind, operator, values, value) is expected


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        pytest.param("int", "0x1_0000_0000".replace("_", ""), id="33 bits"),
        pytest.param("int", "0xffffffff", id="32 bits and no sign"),
        pytest.param("int32", "-2147483649", id="less than 32 bits hold"),
        pytest.param("uint32", "4294967296", id="33 bits, unsigned"),
        pytest.param("uint32", "-1", id="negative, unsigned"),
        pytest.param("uint64", "-1", id="negative, unsigned, 64 bits"),
        pytest.param("uint64", "18446744073709551616", id="65 bits, unsigned"),
        pytest.param("int64", "9223372036854775808", id="64 bits and no sign"),
    ],
)
def test_a_number_that_does_not_fit_its_type_is_refused(kind: str, value: str) -> None:
    with pytest.raises(Unsupported):
        compile_filter("Equal", [value], kind)


@pytest.mark.parametrize(
    ("operator", "values"),
    [
        pytest.param("Equal", ["ten"], id="a word"),
        pytest.param("Equal", ["1", "ten"], id="a number and a word"),
        pytest.param("Mask", ["rw"], id="a mask in words"),
        pytest.param("InRange", ["5"], id="a range without an end"),
        pytest.param("InRange", ["5:"], id="a range with half an end"),
        pytest.param("InRange", [":5"], id="a range without a start"),
        pytest.param("InRange", ["a:b"], id="a range in words"),
        pytest.param("InMap", ["0x5"], id="a set in hexadecimal"),  # R2.3.8
        pytest.param("InMap", ["list:mine"], id="a set from a list"),
        pytest.param("NotInMap", ["five"], id="a set in words"),
    ],
)
def test_values_that_are_no_numbers_are_refused(operator: str, values: list[str]) -> None:
    with pytest.raises(Unsupported):
        compile_filter(operator, values, "int")


def test_a_set_from_a_list_says_so() -> None:
    with pytest.raises(Unsupported, match="values taken from a list are not modelled"):
        compile_filter("InMap", ["list:mine"], "syscall64")


@pytest.mark.parametrize("value", ["text", FilePath("/a"), Socket(), Opaque("x"), b"\0"], ids=lambda value: type(value).__name__)
@pytest.mark.parametrize(
    ("operator", "values"), [("Equal", ["1"]), ("InRange", ["1:2"]), ("InMap", ["1"]), ("Mask", ["1"]), ("LT", ["1"])], ids=show
)
def test_a_value_that_is_no_number_cannot_be_compared_with_one(value: Value, operator: str, values: list[str]) -> None:
    assert answer("int", operator, values, value) is UNKNOWN


# --- text and paths -------------------------------------------------------------------------------------------------

TEXT_TABLE: list[tuple[str, list[str], str, bool]] = [
    ("Equal", ["/etc/shadow"], "/etc/shadow", YES),
    ("Equal", ["/etc/shadow"], "/etc/shadow2", NO),
    ("Equal", ["/etc/shadow"], "/etc/shado", NO),
    ("Equal", ["/etc/shadow"], "/ETC/SHADOW", NO),
    ("Equal", ["/etc/shadow", "/etc/passwd"], "/etc/passwd", YES),
    ("Equal", ["/etc/ü"], "/etc/ü", YES),
    ("Equal", ["/etc/*"], "/etc/passwd", NO),
    ("NotEqual", ["/etc/shadow"], "/etc/passwd", YES),
    ("NotEqual", ["/etc/shadow"], "/etc/shadow", NO),
    ("NotEqual", ["/etc/shadow", "/etc/passwd"], "/etc/passwd", NO),
    ("Prefix", ["/etc/"], "/etc/passwd", YES),
    ("Prefix", ["/etc/"], "/etc", NO),
    ("Prefix", ["/etc/sh"], "/etc/shells", YES),
    ("Prefix", ["/var/", "/etc/"], "/etc/passwd", YES),
    ("Prefix", [""], "/etc/passwd", YES),
    ("Prefix", ["/" + "x" * 254], "/" + "x" * 300, YES),
    ("Prefix", ["/" + "x" * 255], "/" + "x" * 300, NO),
    ("NotPrefix", ["/etc/"], "/var/x", YES),
    ("NotPrefix", ["/etc/"], "/etc/x", NO),
    ("NotPrefix", ["/var/", "/etc/"], "/etc/x", NO),
    ("Postfix", [".pem"], "/etc/tls/server.pem", YES),
    ("Postfix", [".pem"], "/etc/tls/server.pem2", NO),
    ("Postfix", ["shadow", ".pem"], "/etc/gshadow", YES),
    ("Postfix", ["x" * 127], "/" + "x" * 300, YES),
    ("Postfix", ["x" * 128], "/" + "x" * 300, NO),
    ("NotPostfix", [".pem"], "/etc/x", YES),
    ("NotPostfix", [".pem"], "/etc/x.pem", NO),
    ("NotPostfix", [".key", ".pem"], "/etc/x.pem", NO),
]  # R1.4, R2.3.18, R2.3.19


@pytest.mark.parametrize("kind", sorted(STRING_TYPES))
@pytest.mark.parametrize(("operator", "values", "text", "expected"), TEXT_TABLE, ids=show)
def test_texts_are_compared_byte_by_byte(kind: str, operator: str, values: list[str], text: str, expected: bool) -> None:
    assert answer(kind, operator, values, text) is expected


@pytest.mark.parametrize("kind", sorted(PATH_TYPES))
@pytest.mark.parametrize(("operator", "values", "text", "expected"), TEXT_TABLE, ids=show)
def test_paths_are_compared_as_texts(kind: str, operator: str, values: list[str], text: str, expected: bool) -> None:
    assert answer(kind, operator, values, FilePath(text, "-rw-r--r--"), MAIN) is expected


@pytest.mark.parametrize(("operator", "values", "text", "expected"), TEXT_TABLE, ids=show)
def test_bytes_are_compared_as_texts(operator: str, values: list[str], text: str, expected: bool) -> None:
    assert answer("char_buf", operator, values, text.encode()) is expected


@pytest.mark.parametrize(("operator", "expected"), [("Prefix", NO), ("NotPrefix", YES)], ids=show)
def test_the_limit_of_a_prefix_counts_bytes(operator: str, expected: bool) -> None:
    assert answer("string", operator, ["ü" * 128], "ü" * 200) is expected


@pytest.mark.parametrize("kind", sorted(STRING_TYPES))
@pytest.mark.parametrize(
    ("operator", "values", "expected"),
    [
        ("Equal", [""], YES),
        ("Equal", ["x"], NO),
        ("NotEqual", ["x"], YES),
        ("NotEqual", [""], NO),
        ("Prefix", [""], NO),
        ("Prefix", ["x"], NO),
        ("NotPrefix", ["x"], YES),
        ("NotPrefix", [""], YES),
        ("Postfix", ["x"], NO),
        ("NotPostfix", ["x"], YES),
    ],
    ids=show,
)  # R2.3.20
def test_an_empty_text_has_no_beginning_and_no_end(kind: str, operator: str, values: list[str], expected: bool) -> None:
    assert answer(kind, operator, values, "") is expected


@pytest.mark.parametrize("kind", sorted(PATH_TYPES))
@pytest.mark.parametrize("operator", sorted(TEXT_OPERATORS))
@pytest.mark.parametrize("value", ["", "/etc/shadow"])
def test_an_empty_path_matches_nothing_negated_or_not(kind: str, operator: str, value: str) -> None:  # R2.3.20
    assert answer(kind, operator, [value], FilePath("", "drwxr-xr-x"), MAIN) is NO


@pytest.mark.parametrize(
    ("kind", "operator", "value", "text", "expected"),
    [
        ("string", "Equal", "/etc/passwd\0", "/etc/passwd", YES),
        ("string", "NotEqual", "/etc/passwd\0\0", "/etc/passwd", NO),
        ("string", "Postfix", "passwd\0", "/etc/passwd", YES),
        ("string", "NotPostfix", "passwd\0", "/etc/passwd", NO),
        ("string", "Prefix", "/etc\0", "/etc/passwd", NO),
        ("file", "Equal", "/etc/passwd\0", "/etc/passwd", NO),
        ("path", "NotEqual", "/etc/passwd\0", "/etc/passwd", YES),
        ("char_buf", "Equal", "passwd\0", "passwd", NO),
        ("char_buf", "Equal", "passwd\0", "passwd\0", YES),
        ("char_buf", "Postfix", "passwd\0", "passwd", NO),
        ("data_loc", "Equal", "passwd\0", "passwd", NO),
        ("file", "Postfix", "passwd\0", "/etc/passwd", YES),
        ("path", "NotPostfix", "passwd\0", "/etc/passwd", NO),
        ("dentry", "Postfix", "passwd\0", "/etc/passwd", YES),
        ("linux_binprm", "Postfix", "passwd\0", "/etc/passwd", YES),
        ("net_device", "Postfix", "h0\0", "eth0", YES),
        ("data_loc", "Postfix", "passwd\0", "/etc/passwd", YES),
    ],
    ids=show,
)
def test_trailing_nuls_of_a_value_are_stripped_where_the_agent_does(
    kind: str, operator: str, value: str, text: str, expected: bool
) -> None:
    recorded: Value = text.encode() if kind == "char_buf" else FilePath(text, "-") if kind in PATH_TYPES else text
    assert answer(kind, operator, [value], recorded) is expected


@pytest.mark.parametrize("operator", sorted(TEXT_OPERATORS))
@pytest.mark.parametrize("value", ["/etc/\ufffd", FilePath("/etc/\ufffd", "-")], ids=["text", "path"])
def test_a_text_that_lost_bytes_cannot_be_compared(operator: str, value: Value) -> None:  # R2.3.26
    kind = "file" if isinstance(value, FilePath) else "string"
    assert answer(kind, operator, ["x/etc/xyz" if "Postfix" in operator else "/etc/xyz"], value) is UNKNOWN


def test_a_text_longer_than_the_agent_reads_is_compared_cut() -> None:  # R2.3.17
    assert answer("string", "Equal", ["x" * 4096], "x" * 5000) is YES


def test_bytes_that_are_not_utf8_are_compared_as_they_are() -> None:
    assert answer("char_buf", "Prefix", ["ab"], b"ab\xff") is YES
    assert answer("char_buf", "Equal", ["ab"], b"ab\xff") is NO


@pytest.mark.parametrize("value", [1, Socket(), Opaque("x")], ids=lambda value: type(value).__name__)
@pytest.mark.parametrize("operator", sorted(TEXT_OPERATORS))
def test_a_value_that_is_no_text_cannot_be_compared_with_one(value: Value, operator: str) -> None:
    assert answer("string", operator, ["x"], value) is UNKNOWN


# --- types of files -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["file", "path"])
@pytest.mark.parametrize(
    ("values", "permission", "expected"),
    [
        (["reg"], "-rw-r--r--", YES),
        (["regular"], "-rw-r--r--", YES),
        (["dir"], "drwxr-xr-x", YES),
        (["lnk"], "lrwxrwxrwx", YES),
        (["link"], "lrwxrwxrwx", YES),
        (["chr"], "crw-rw-rw-", YES),
        (["char"], "crw-rw-rw-", YES),
        (["blk"], "brw-rw----", YES),
        (["block"], "brw-rw----", YES),
        (["fifo"], "prw-r--r--", YES),
        (["pipe"], "prw-r--r--", YES),
        (["sock"], "srwxrwxrwx", YES),
        (["socket"], "srwxrwxrwx", YES),
        (["reg"], "drwxr-xr-x", NO),
        (["reg", "dir"], "drwxr-xr-x", YES),
        (["reg", "dir"], "lrwxrwxrwx", NO),
    ],
    ids=show,
)  # R2.3.23
def test_the_type_of_a_file_is_the_first_letter_of_its_permission(kind: str, values: list[str], permission: str, expected: bool) -> None:
    assert answer(kind, "FileType", values, FilePath("/x", permission)) is expected
    assert answer(kind, "NotFileType", values, FilePath("/x", permission)) is not expected


@pytest.mark.parametrize(("operator", "expected"), [("FileType", YES), ("NotFileType", NO)], ids=show)
def test_the_type_of_a_file_without_a_path_is_compared(operator: str, expected: bool) -> None:  # R2.3.20
    assert answer("file", operator, ["dir"], FilePath("", "drwxr-xr-x")) is expected


@pytest.mark.parametrize("value", [FilePath("/x"), "/x", 1], ids=["no permission", "a text", "a number"])
def test_the_type_of_a_file_may_be_unknown(value: Value) -> None:
    assert answer("file", "FileType", ["dir"], value) is UNKNOWN


def test_an_unknown_type_of_file_is_refused() -> None:
    with pytest.raises(Unsupported, match="file type 'folder' is not known; known: sock, "):
        compile_filter("FileType", ["folder"], "file")


# --- sockets --------------------------------------------------------------------------------------------------------

V4 = Socket("AF_INET", "SOCK_STREAM", "IPPROTO_TCP", "TCP_SYN_SENT", "10.1.0.9", "198.51.100.7", 40112, 443)
V6 = Socket("AF_INET6", "SOCK_STREAM", "IPPROTO_TCP", "TCP_ESTABLISHED", "fd00::9", "2001:db8::7", 40112, 22)
MAPPED = Socket("AF_INET6", daddr="::ffff:10.1.2.3", saddr="::ffff:10.1.2.4", sport=1, dport=2)
UNIX = Socket("AF_UNIX")
UNBOUND = Socket("AF_INET", daddr="10.0.0.1")


@pytest.mark.parametrize("kind", ["sock", "socket", "skb"])
@pytest.mark.parametrize(
    ("operator", "values", "value", "expected"),
    [
        ("DAddr", ["198.51.100.7"], V4, YES),
        ("DAddr", ["198.51.100.0/24"], V4, YES),
        ("DAddr", ["198.51.100.99/24"], V4, YES),  # bits of the host do not count
        ("DAddr", ["198.51.100.8"], V4, NO),
        ("DAddr", ["0.0.0.0/0"], V4, YES),
        ("DAddr", ["10.0.0.0/8", "198.51.100.0/24"], V4, YES),
        ("DAddr", ["::/0"], V4, NO),
        ("DAddr", ["2001:db8::/32"], V6, YES),
        ("DAddr", ["0.0.0.0/0"], V6, NO),
        ("SAddr", ["10.0.0.0/8"], V4, YES),
        ("SAddr", ["198.51.100.7"], V4, NO),
        ("SAddr", ["fd00::/8"], V6, YES),
        ("SAddr", ["0.0.0.0"], UNBOUND, YES),
        ("SAddr", ["::"], Socket("AF_INET6", daddr="fd00::1"), YES),
        ("NotDAddr", ["10.0.0.0/8"], V4, YES),
        ("NotDAddr", ["198.51.100.0/24"], V4, NO),
        ("NotDAddr", ["10.0.0.0/8", "198.51.100.0/24"], V4, NO),
        ("NotDAddr", ["10.0.0.0/8"], V6, YES),
        ("NotSAddr", ["fd00::/8"], V6, NO),
        ("NotSAddr", ["fd00::/8"], V4, YES),
        # an IPv4 address in IPv6 clothes is IPv6
        ("DAddr", ["10.0.0.0/8"], MAPPED, NO),
        ("NotDAddr", ["10.0.0.0/8"], MAPPED, YES),
        ("DAddr", ["::ffff:10.0.0.0/104"], MAPPED, YES),
        ("NotDAddr", ["::ffff:10.0.0.0/104"], MAPPED, NO),
        # neither family: no match, negated or not
        ("DAddr", ["0.0.0.0/0", "::/0"], UNIX, NO),
        ("NotDAddr", ["10.0.0.0/8"], UNIX, NO),
        ("SAddr", ["0.0.0.0/0"], UNIX, NO),
        ("NotSAddr", ["10.0.0.0/8"], UNIX, NO),
        ("NotDAddr", ["10.0.0.0/8"], Socket("AF_NETLINK"), NO),
        # the family of an event that does not name it
        ("DAddr", ["10.0.0.0/8"], Socket(daddr="10.0.0.1"), YES),
        ("DAddr", ["fd00::/8"], Socket(daddr="fd00::1"), YES),
        ("SAddr", ["10.0.0.0/8"], Socket(saddr="10.0.0.1"), YES),
        ("SAddr", ["fd00::/8"], Socket(saddr="fd00::1"), YES),
    ],
    ids=show,
)  # R2.3.27, R2.3.29
def test_addresses_are_compared_within_their_family(kind: str, operator: str, values: list[str], value: Socket, expected: bool) -> None:
    assert answer(kind, operator, values, value) is expected


@pytest.mark.parametrize("kind", ["sock", "socket", "skb"])
@pytest.mark.parametrize(
    ("operator", "values", "value", "expected"),
    [
        ("DPort", ["443"], V4, YES),
        ("DPort", ["80"], V4, NO),
        ("DPort", ["80", "400:500"], V4, YES),
        ("DPort", ["500:400"], V4, YES),
        ("DPort", ["444:500"], V4, NO),
        ("SPort", ["40112"], V4, YES),
        ("SPort", ["443"], V4, NO),
        ("NotDPort", ["443"], V4, NO),
        ("NotDPort", ["80"], V4, YES),
        ("NotDPort", ["400:500"], V4, NO),
        ("NotSPort", ["443"], V4, YES),
        ("DPort", ["0"], UNIX, YES),
        ("NotSPort", ["443"], UNIX, YES),
        ("DPortPriv", [], V4, YES),
        ("SPortPriv", [], V4, NO),
        ("NotDPortPriv", [], V4, NO),
        ("NotSportPriv", [], V4, YES),
        ("SPortPriv", [], UNIX, YES),
        ("DPortPriv", [], UNIX, YES),
        ("NotSportPriv", [], UNIX, NO),
        ("DPortPriv", [], Socket("AF_INET", dport=1023), YES),
        ("DPortPriv", [], Socket("AF_INET", dport=1024), NO),
    ],
    ids=show,
)  # R2.3.30
def test_ports_are_compared_whatever_the_family(kind: str, operator: str, values: list[str], value: Socket, expected: bool) -> None:
    assert answer(kind, operator, values, value) is expected


@pytest.mark.parametrize(
    ("operator", "values", "value", "expected"),
    [
        ("Family", ["AF_INET"], V4, YES),
        ("Family", ["AF_INET"], V6, NO),
        ("Family", ["AF_INET", "AF_INET6"], V6, YES),
        ("Family", ["2"], V4, YES),
        ("Family", ["1:9"], V4, YES),
        ("Family", ["AF_UNIX"], UNIX, YES),
        ("Family", ["1"], UNIX, YES),
        ("Family", ["29"], Socket("29"), YES),
        ("Protocol", ["IPPROTO_TCP"], V4, YES),
        ("Protocol", ["IPPROTO_UDP"], V4, NO),
        ("Protocol", ["6"], V4, YES),
        ("Protocol", ["IPPROTO_ICMP", "IPPROTO_TCP"], V4, YES),
        ("Protocol", ["5:7"], V4, YES),
        ("Protocol", ["253"], Socket("AF_INET", protocol="253"), YES),
        ("State", ["TCP_SYN_SENT"], V4, YES),
        ("State", ["TCP_ESTABLISHED"], V4, NO),
        ("State", ["2"], V4, YES),
        ("State", ["1:3"], V4, YES),
        ("Family", ["31"], Socket("AF_BLUETOOTH"), YES),
        ("Protocol", ["47"], Socket("AF_INET", protocol="IPPROTO_GRE"), YES),
        ("Protocol", ["47"], Socket("AF_INET", protocol="IPPROTO_NEW"), UNKNOWN),
        ("Protocol", ["0:255"], Socket("AF_INET", protocol="IPPROTO_NEW"), UNKNOWN),
        ("Family", ["16"], Socket(), UNKNOWN),
    ],
    ids=show,
)
def test_names_and_numbers_of_a_socket_are_one(operator: str, values: list[str], value: Socket, expected: bool | None) -> None:
    assert answer("sock", operator, values, value) is expected


KERNEL_NUMBERS = {
    "Family": {
        "AF_UNSPEC": 0, "AF_UNIX": 1, "AF_INET": 2, "AF_INET6": 10, "AF_NETLINK": 16, "AF_PACKET": 17, "AF_ALG": 38, "AF_VSOCK": 40,
        "AF_XDP": 44,
    },
    "Protocol": {
        "IPPROTO_ICMP": 1, "IPPROTO_IGMP": 2, "IPPROTO_TCP": 6, "IPPROTO_UDP": 17, "IPPROTO_ICMPV6": 58, "IPPROTO_SCTP": 132,
        "IPPROTO_RAW": 255,
    },
    "State": {
        "TCP_ESTABLISHED": 1, "TCP_SYN_SENT": 2, "TCP_SYN_RECV": 3, "TCP_FIN_WAIT1": 4, "TCP_FIN_WAIT2": 5, "TCP_TIME_WAIT": 6,
        "TCP_CLOSE": 7, "TCP_CLOSE_WAIT": 8, "TCP_LAST_ACK": 9, "TCP_LISTEN": 10, "TCP_CLOSING": 11, "TCP_NEW_SYN_RECV": 12,
    },
}  # fmt: skip


@pytest.mark.parametrize(
    ("operator", "name", "number"),
    [(operator, name, number) for operator, names in KERNEL_NUMBERS.items() for name, number in names.items()],
)
def test_a_name_stands_for_the_kernels_number(operator: str, name: str, number: int) -> None:  # R2.3.31
    field = operator.lower()
    assert answer("sock", operator, [str(number)], Socket(**{"family": "AF_INET", field: name})) is YES
    assert answer("sock", operator, [name], Socket(**{"family": "AF_INET", field: str(number)})) is YES
    assert answer("sock", operator, [str(number + 1)], Socket(**{"family": "AF_INET", field: name})) is NO


@pytest.mark.parametrize("values", [["TCP_ESTABLISHED"], ["1"], ["0:20"]], ids=show)
def test_a_packet_has_no_state(values: list[str]) -> None:  # R2.3.28
    assert answer("skb", "State", values, V6) is NO


@pytest.mark.parametrize(
    ("operator", "values", "expected"),
    [
        ("SAddr", ["198.51.100.0/24"], YES),
        ("NotSAddr", ["198.51.100.0/24"], NO),
        ("SPort", ["443"], YES),
        ("NotSPort", ["443"], NO),
        ("SPortPriv", [], YES),
        ("NotSportPriv", [], NO),
        ("Family", ["AF_INET"], YES),
    ],
    ids=show,
)
def test_a_socket_address_is_a_source(operator: str, values: list[str], expected: bool) -> None:  # R2.3.28
    assert answer("sockaddr", operator, values, Socket("AF_INET", saddr="198.51.100.7", sport=443)) is expected


@pytest.mark.parametrize("operator", ["DAddr", "NotDAddr", "DPort", "NotDPort", "DPortPriv", "NotDPortPriv", "Protocol", "State"])
def test_a_socket_address_has_no_peer(operator: str) -> None:  # R2.3.28
    with pytest.raises(Unsupported, match="sockaddr"):
        compile_filter(operator, ["10.0.0.1"] if operator in ADDRESS_OPERATORS else ["1"], "sockaddr")


@pytest.mark.parametrize(
    ("operator", "values"),
    [
        pytest.param("DAddr", ["10.0.0.0/33"], id="a mask too long"),
        pytest.param("DAddr", ["localhost"], id="a name for an address"),
        pytest.param("DAddr", ["10.0.0"], id="half an address"),
        pytest.param("DPort", ["http"], id="a name for a port"),
        pytest.param("DPort", ["0x50"], id="a port in hexadecimal"),
        pytest.param("Family", ["INET"], id="a family without its prefix"),
        pytest.param("Protocol", ["tcp"], id="a protocol without its prefix"),
        pytest.param("State", ["ESTABLISHED"], id="a state without its prefix"),
    ],
)
def test_values_that_mean_nothing_for_a_socket_are_refused(operator: str, values: list[str]) -> None:
    with pytest.raises(Unsupported):
        compile_filter(operator, values, "sock")


@pytest.mark.parametrize("operator", sorted(SOCKET_OPERATORS))
def test_a_value_that_is_no_socket_cannot_be_compared_with_one(operator: str) -> None:
    values = ["10.0.0.1"] if operator in ADDRESS_OPERATORS else ["1"]
    assert answer("sock", operator, values, "10.0.0.1") is UNKNOWN


def test_an_address_that_cannot_be_read_is_not_compared() -> None:
    assert answer("sock", "DAddr", ["10.0.0.1"], Socket("AF_INET", daddr="?")) is UNKNOWN


# --- capabilities ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", sorted(CAPABILITY_TYPES))
@pytest.mark.parametrize(
    ("operator", "values", "value", "expected"),
    [
        ("Equal", ["0x1"], 1, YES),
        ("Equal", ["0x1"], 3, NO),
        ("Equal", ["CAP_CHOWN"], 1, YES),
        ("Equal", ["CAP_CHOWN,DAC_OVERRIDE"], 3, YES),
        ("Equal", ["CAP_CHOWN, DAC_OVERRIDE"], 3, YES),
        ("Equal", ["CAP_CHOWN"], 3, NO),
        ("Equal", ["CAP_CHOWN", "DAC_OVERRIDE"], 2, YES),
        ("Equal", ["CAP_SYS_ADMIN"], 1 << 21, YES),
        ("NotEqual", ["0"], 1, YES),
        ("NotEqual", ["0"], 0, NO),
        ("NotEqual", ["CAP_CHECKPOINT_RESTORE"], 1 << 40, NO),
        ("NotEqual", ["1", "CAP_KILL"], 1 << 5, NO),
    ],
    ids=show,
)  # R2.3.35
def test_capabilities_are_compared_as_a_whole(kind: str, operator: str, values: list[str], value: int, expected: bool) -> None:
    assert answer(kind, operator, values, value) is expected


@pytest.mark.parametrize(
    ("name", "bit"),
    [("CAP_CHOWN", 0), ("DAC_OVERRIDE", 1), ("CAP_SETPCAP", 8), ("CAP_SYS_ADMIN", 21), ("CAP_BPF", 39), ("CAP_CHECKPOINT_RESTORE", 40)],
    ids=show,
)
def test_a_capability_has_a_number(name: str, bit: int) -> None:
    assert capability_bit(name) == bit


def test_there_are_41_capabilities() -> None:
    assert sorted(CAPABILITY_NAMES.values()) == list(range(41))


def test_the_one_that_is_spelt_otherwise_is_told() -> None:  # R2.3.35
    with pytest.raises(Unsupported, match="the agent spells it DAC_OVERRIDE"):
        capability_bit("CAP_DAC_OVERRIDE")


@pytest.mark.parametrize("name", ["CHOWN", "cap_chown", "CAP_NONE", ""])
def test_an_unknown_capability_is_refused(name: str) -> None:
    with pytest.raises(Unsupported, match=f"^capability {name!r} is not known$"):
        compile_filter("Equal", [name], "cap_effective")


# --- what every filter shares ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "operator", "values"),
    [
        ("string", "Equal", ["x"]),
        ("string", "NotEqual", ["x"]),
        ("file", "NotPrefix", ["x"]),
        ("file", "NotFileType", ["dir"]),
        ("int", "Equal", ["1"]),
        ("int", "NotEqual", ["1"]),
        ("int", "NotInMap", ["1"]),
        ("int", "NotInRange", ["1:2"]),
        ("int", "Mask", ["1"]),
        ("sock", "NotDAddr", ["10.0.0.0/8"]),
        ("sock", "NotDPort", ["1"]),
        ("sock", "Family", ["AF_INET"]),
        ("cap_effective", "NotEqual", ["1"]),
        ("char_buf", "NotPostfix", ["x"]),
    ],
    ids=show,
)
def test_an_argument_that_could_not_be_read_matches_nothing(kind: str, operator: str, values: list[str]) -> None:  # R2.3.4
    assert answer(kind, operator, values, ReadError("Bad address")) is NO


@pytest.mark.parametrize("kind", sorted([*INTEGERS, *SOCKET_TYPES]))
@pytest.mark.parametrize("operator", ["Prefix", "NotPrefix", "Postfix", "NotPostfix"])
def test_beginnings_and_ends_of_numbers_and_sockets_load_and_never_match(kind: str, operator: str) -> None:  # R2.3.6
    assert answer(kind, operator, ["1"], 1 if kind in INTEGERS else V4) is NO


FITTING = {"FileType": "dir", "NotFileType": "dir", "DAddr": "10.0.0.1", "InRange": "1:2", "Family": "AF_INET", "State": "TCP_CLOSE"}


@pytest.mark.parametrize(
    ("kind", "operator"),
    [
        *[("string", operator) for operator in ("GT", "LT", "Mask", "InRange", "InMap", "DAddr", "FileType", "Family")],
        *[("file", operator) for operator in ("GT", "InMap", "SPort")],
        *[("linux_binprm", operator) for operator in sorted(FILE_TYPE_OPERATORS)],
        *[("dentry", operator) for operator in sorted(FILE_TYPE_OPERATORS)],
        *[("int", operator) for operator in ("DAddr", "SPortPriv", "State", "FileType")],
        *[("sock", operator) for operator in ("GT", "Mask", "InMap", "FileType")],
        *[("cap_effective", operator) for operator in ("GT", "Mask", "InMap", "Prefix")],
        *[
            (kind, "Equal")
            for kind in ("filename", "kiocb", "iov_iter", "char_iovec", "cred", "capability", "bpf_map", "fd", "auto", "nonsense")
        ],
        *[(kind, operator) for kind in ("dentry", "data_loc", "cap_effective") for operator in sorted(SUBSTRING_OPERATORS)],
        ("int", "CelExpr"),
        ("cap_effective", "CapabilitiesGained"),
        ("dentry", "Equal"),
        ("sock", "Equal"),
    ],
    ids=show,
)
def test_what_the_agent_refuses_or_this_engine_does_not_model_is_no_filter(kind: str, operator: str) -> None:  # R2.3.6
    with pytest.raises(Unsupported, match=r"is not modelled|is refused"):
        compile_filter(operator, [FITTING.get(operator, "1")], kind)


def test_every_operator_on_numbers_is_in_a_table_here() -> None:
    assert {
        "Equal", "NotEqual", "GT", "GreaterThan", "LT", "LessThan", "Mask", "InRange", "NotInRange", "InMap", "NotInMap",
    } == NUMBER_OPERATORS  # fmt: skip
