"""The corpus of odd files: hostile, malformed, and valid but unusual, all built from constants.

A case is a group, a name and the bytes; `DECLARED` lists the cases in which we do otherwise than
stock safetensors 0.8.0, and why. All other cases must get stock's verdict, whatever that is.
"""

from __future__ import annotations

import gzip
import json
import struct
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

FOUR = bytes((1, 2, 3, 4))
HEADER_BYTES_MAX = 100_000_000
CUT_DATA_BYTES = 1000  # in the foreign group's cut files, before the cut
WIDTH_BITS = {
    "BOOL": 8,
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
    "U8": 8,
    "I8": 8,
    "F8_E5M2": 8,
    "F8_E4M3": 8,
    "F8_E8M0": 8,
    "F8_E4M3FNUZ": 8,
    "F8_E5M2FNUZ": 8,
    "I16": 16,
    "U16": 16,
    "F16": 16,
    "BF16": 16,
    "I32": 32,
    "U32": 32,
    "F32": 32,
    "C64": 64,
    "F64": 64,
    "I64": 64,
    "U64": 64,
}


class Difference(Enum):
    """What we do otherwise than stock, and why."""

    DUPLICATE = "a tensor name that stands twice is refused: readers of one file must not disagree"
    F4 = "F4 works through pread and load(bytes) as it does through stock's mmap"
    F8_E8M0 = "F8_E8M0 works through load(bytes) as it does through stock's safe_open"


DECLARED = {
    "names-duplicate_same_range": Difference.DUPLICATE,
    "names-duplicate_other_range": Difference.DUPLICATE,
    "names-duplicate_shorter_first": Difference.DUPLICATE,
    "names-duplicate_other_dtype": Difference.DUPLICATE,
    "names-duplicate_by_escape": Difference.DUPLICATE,
    "names-duplicate_by_escaped_slash": Difference.DUPLICATE,
    "names-duplicate_around_metadata": Difference.DUPLICATE,
    "names-duplicate_zero_size": Difference.DUPLICATE,
    "names-duplicate_empty_name": Difference.DUPLICATE,
    "names-duplicate_three_times": Difference.DUPLICATE,
    "names-duplicate_and_trailing_bytes": Difference.DUPLICATE,
    "dtype-F4": Difference.F4,
    "dtype-F8_E8M0": Difference.F8_E8M0,
    "subbyte-f4_one_byte": Difference.F4,
    "subbyte-f4_matrix": Difference.F4,
    "subbyte-f4_empty": Difference.F4,
    "subbyte-f4_empty_rows": Difference.F4,
    "subbyte-f4_empty_huge": Difference.F4,
    "subbyte-f4_beside_u8": Difference.F4,
}


@dataclass(frozen=True)
class Case:
    """One file of the corpus."""

    group: str
    name: str
    content: bytes | Callable[[], bytes]

    @property
    def id(self) -> str:
        return f"{self.group}-{self.name}"

    @property
    def difference(self) -> Difference | None:
        return DECLARED.get(self.id)

    def data(self) -> bytes:
        return self.content() if callable(self.content) else self.content


def cases() -> Iterator[Case]:
    """Gives every case, in the same order and with the same bytes each time."""
    for group, files in GROUPS.items():
        for name, content in files().items():
            yield Case(group, name, content)


def file(header: str | bytes, data: bytes = b"", length: int | None = None) -> bytes:
    """Puts a file together; `length` is what the length field claims, right or wrong."""
    text = header.encode() if isinstance(header, str) else header
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(dtype: str = '"U8"', shape: object = "[4]", begin: object = 0, end: object = 4) -> str:
    """Writes a tensor's value; every part is raw JSON."""
    return f'{{"dtype":{dtype},"shape":{shape},"data_offsets":[{begin},{end}]}}'


def table(**tensors: str) -> str:
    """Writes a header of several tensors, their values raw JSON."""
    return "{" + ",".join(f'"{name}":{value}' for name, value in tensors.items()) + "}"


def one(value: str, data: bytes = FOUR) -> bytes:
    """Makes a file of one tensor `a` with that value, raw JSON."""
    return file(table(a=value), data)


def shaped(shape: str, end: int, dtype: str = "U8") -> bytes:
    """Makes a file of one tensor with that shape and as many bytes as its offsets say."""
    return one(entry(f'"{dtype}"', shape, 0, end), bytes(index % 251 for index in range(end)))


def beside(field: str) -> bytes:
    """Makes a good file whose one tensor has another field, raw JSON, among its own."""
    return one(f'{{"dtype":"U8",{field},"shape":[4],"data_offsets":[0,4]}}')


def named(name: str) -> bytes:
    """Makes a good file whose one tensor has that name, raw JSON without its quotes."""
    return file(f'{{"{name}":{entry()}}}', FOUR)


def twice(first: str, second: str, between: str = "", names: tuple[str, str] = ("a", "a")) -> bytes:
    """Makes a file of two tensors, whose names may be one."""
    return file(f'{{"{names[0]}":{first},{between}"{names[1]}":{second}}}', FOUR)


def with_metadata(value: str) -> bytes:
    """Makes a good file with that `__metadata__`, raw JSON."""
    return file(f'{{"__metadata__":{value},"a":{entry()}}}', FOUR)


def _valid() -> dict[str, bytes]:
    low, high = entry('"U8"', "[2]", 0, 2), entry('"I16"', "[1]", 2, 4)
    nothing = entry('"F32"', "[0,3]", 2, 2)
    mixed = table(
        c=entry('"F64"', "[1,2]", 0, 16),
        a=entry('"BF16"', "[3]", 16, 22),
        b=entry('"BOOL"', "[5]", 22, 27),
    )
    many = {f"t{i}": entry('"U8"', "[1]", i, i + 1) for i in range(100)}
    pages = table(a=entry('"U8"', "[5001]", 0, 5001), b=entry('"F32"', "[70000]", 5001, 285_001))
    return {
        "no_tensors": file("{}"),
        "one_tensor": one(entry()),
        "scalar": one(entry('"F32"', "[]")),
        "mixed_dtypes": file(mixed, bytes(range(27))),
        "later_in_file_first_in_header": file(table(b=high, a=low), FOUR),
        "zero_size": one(entry('"F32"', "[0]", 0, 0), b""),
        "zero_size_inside_shape": one(entry('"F32"', "[3,0,2]", 0, 0), b""),
        "zero_size_between": file(table(a=low, b=nothing, c=high), FOUR),
        "zero_size_at_end": file(table(z=entry('"I64"', "[0]", 4, 4), a=entry()), FOUR),
        "zero_size_ties": file(table(a=low, d=nothing, c=nothing, b=nothing, e=high), FOUR),
        "hundred_tensors": file(table(**many), bytes(range(100))),
        "several_pages_unaligned": file(pages, bytes(i % 253 for i in range(285_001))),
        "fields_in_other_order": one('{"data_offsets":[0,4],"shape":[4],"dtype":"U8"}'),
        "white_space_inside": file(
            '{ "a" :\n{"dtype"\t: "U8","shape" :[ 4 ] ,\r"data_offsets": [0 , 4] } }', FOUR
        ),
        "field_names_escaped": one('{"d\\u0074ype":"U8","sh\\u0061pe":[4],"data_offsets":[0,4]}'),
        "unaligned_f64": file(table(x=entry('"F64"', "[2]", 0, 16)) + " ", bytes(range(16))),
        "bools_beyond_one": one(entry('"BOOL"'), b"\x00\x01\x02\xff"),
        "signalling_nan": one(entry('"F32"', "[1]"), b"\x01\x00\xa0\x7f"),
    }


def _lengths() -> dict[str, bytes]:
    header = table(a=entry())
    claims = {
        "zero": 0,
        "one": 1,
        "one_less": len(header) - 1,
        "one_more": len(header) + 1,
        "whole_file": len(header) + 4,
        "one_past_file": len(header) + 5,
        "at_limit": HEADER_BYTES_MAX,
        "past_limit": HEADER_BYTES_MAX + 1,
        "2_31": 1 << 31,
        "2_32": 1 << 32,
        "2_32_plus_right": (1 << 32) + len(header),
        "2_63_less_1": (1 << 63) - 1,
        "2_63": 1 << 63,
        "2_64_less_9": (1 << 64) - 9,
        "2_64_less_8": (1 << 64) - 8,
        "2_64_less_1": (1 << 64) - 1,
    }
    files = {f"length_{name}": file(header, FOUR, claim) for name, claim in claims.items()}
    swapped = struct.pack(">Q", len(header)) + header.encode() + FOUR
    return files | {"length_big_endian": swapped}


def _envelope() -> dict[str, bytes]:
    good = table(a=entry())
    pads = {
        "space": b" ",
        "tab": b"\t",
        "newline": b"\n",
        "return": b"\r",
        "nul": b"\0",
        "form_feed": b"\f",
        "vertical_tab": b"\v",
        "no_break_space": "\u00a0".encode(),
        "line_separator": "\u2028".encode(),
        "bom": "\ufeff".encode(),
        "invalid_utf8": b"\xff",
        "latin1": b"\xe9",
    }
    before = {f"before_{name}": file(pad + good.encode(), FOUR) for name, pad in pads.items()}
    after = {f"after_{name}": file(good.encode() + pad, FOUR) for name, pad in pads.items()}
    sizes = {f"only_{size}_bytes": bytes(size) for size in (1, 2, 7, 8, 9)}
    return (
        _lengths()
        | before
        | after
        | sizes
        | {
            "after_4096_spaces": file(good + " " * 4096, FOUR),
            "before_4096_spaces": file(" " * 4096 + good, FOUR),
            "only_spaces": file(" " * 64),
            "trailing_byte": file(good, FOUR + b"\0"),
            "trailing_page": file(good, FOUR + bytes(4096)),
            "trailing_copy": file(good, FOUR) * 2,
            "trailing_zip": file(good, FOUR + b"PK\x05\x06" + bytes(18)),
            "no_tensors_but_bytes": file("{}", FOUR),
            "one_byte_missing": file(good, FOUR[:3]),
            "no_bytes": file(good),
        }
    )


def _json() -> dict[str, bytes]:
    value = entry()
    whole = {
        "array": "[]",
        "array_of_object": "[{}]",
        "array_as_struct": "[null,{}]",
        "string": '"a"',
        "number": "0",
        "null": "null",
        "true": "true",
        "nothing_closed": "{",
        "extra_close": "{}}",
        "second_object": "{}{}",
        "comment": "{/* */}",
        "trailing_comma": f'{{"a":{value},}}',
        "leading_comma": f'{{,"a":{value}}}',
        "no_colon": f'{{"a"{value}}}',
        "no_comma": f'{{"a":{entry(shape="[2]", end=2)}"b":{entry(shape="[2]", begin=2)}}}',
        "single_quotes": table(a=value).replace('"', "'"),
        "bare_key": f"{{a:{value}}}",
        "number_key": f"{{1:{value}}}",
        "utf16": table(a=value).encode("utf-16-le"),
    }
    numbers = {
        "1e999": "1e999",
        "minus_1e999": "-1e999",
        "1e_minus_999": "1e-999",
        "minus_0": "-0",
        "1_0": "1.0",
        "exponent": "1E+2",
        "2_64": str(1 << 64),
        "below_i64": str(-(1 << 63) - 1),
        "308_digits": "1" + "0" * 308,
        "309_digits": "1" + "0" * 309,
        "leading_zero": "01",
        "no_fraction": "1.",
        "no_integer": ".5",
        "plus": "+1",
        "hex": "0x10",
        "nan": "NaN",
        "infinity": "Infinity",
        "minus": "-",
        "no_exponent": "1e",
    }
    strings = {
        "lone_high_surrogate": "\\ud800",
        "lone_low_surrogate": "\\udc00",
        "high_surrogate_twice": "\\ud800\\ud800",
        "high_surrogate_then_text": "\\ud800x",
        "surrogates_swapped": "\\ude00\\ud83d",
        "surrogate_pair": "\\ud83d\\ude00",
        "escaped_nul": "\\u0000",
        "short_escape": "\\u00",
        "unknown_escape": "\\x41",
        "capital_u_escape": "\\U0041",
        "raw_newline": "\n",
        "raw_nul": "\0",
        "raw_delete": "\x7f",
        "escaped_slash": "\\/",
    }
    return (
        {f"whole_{name}": file(text, FOUR) for name, text in whole.items()}
        | {f"number_{name}": beside(f'"x":{text}') for name, text in numbers.items()}
        | {f"string_{name}": beside(f'"x":"{text}"') for name, text in strings.items()}
        | _nested()
    )


def _nested() -> dict[str, bytes]:
    depths = (10, 124, 125, 126, 127, 128, 129, 200, 10_000)
    arrays = {f"nested_{n}_arrays": beside(f'"x":{"[" * n}{"]" * n}') for n in depths}
    objects = {
        f"nested_{n}_objects": beside('"x":' + '{"y":' * n + "1" + "}" * n)
        for n in (10, 125, 126, 127)
    }
    return (
        arrays
        | objects
        | {
            "nested_never_closed": beside('"x":' + "[" * 125),
            "nested_surrogate": beside('"x":[{"y":["\\ud800"]}]'),
            "nested_surrogate_key": beside('"x":[{"\\ud800":1}]'),
            "nested_1e999": beside('"x":[{"y":[1e999]}]'),
            "nested_in_shape": one(entry(shape="[" * 130 + "4" + "]" * 130)),
            "nested_in_metadata": with_metadata('{"x":' + "[" * 130 + "]" * 130 + "}"),
            "nested_as_entry": one("[" * 130 + "]" * 130),
        }
    )


def _entry() -> dict[str, bytes]:
    values = {
        "array": '["U8",[4],[0,4]]',
        "array_of_dtype_object": '[{"U8":null},[4],[0,4]]',
        "array_empty": "[]",
        "array_of_one": '["U8"]',
        "array_of_two": '["U8",[4]]',
        "array_of_four": '["U8",[4],[0,4],null]',
        "array_in_other_order": '[[4],"U8",[0,4]]',
        "array_deep_fourth": '["U8",[4],[0,4],' + "[" * 130 + "]" * 130 + "]",
        "empty": "{}",
        "null": "null",
        "string": '"U8"',
        "number": "4",
        "false": "false",
        "no_dtype": '{"shape":[4],"data_offsets":[0,4]}',
        "no_shape": '{"dtype":"U8","data_offsets":[0,4]}',
        "no_offsets": '{"dtype":"U8","shape":[4]}',
        "capital_field": '{"Dtype":"U8","shape":[4],"data_offsets":[0,4]}',
        "space_in_field": '{"dtype ":"U8","shape":[4],"data_offsets":[0,4]}',
        "inside_itself": '{"a":' + entry() + "}",
    }
    fields = {
        "unknown_null": '"x":null',
        "unknown_object": '"x":{"y":[1,{"z":"w"}]}',
        "unknown_empty_name": '"":0',
        "unknown_twice": '"x":1,"x":2',
        "unknown_by_escaped_name": '"\\u0078":1',
        "unknown_metadata": '"__metadata__":{}',
        "unknown_surrogate_name": '"\\ud800":1',
        "dtype_twice": '"dtype":"U8"',
        "dtype_twice_by_escape": '"dtyp\\u0065":"U8"',
        "dtype_twice_first_bad": '"dtype":1',
        "shape_twice": '"shape":[4]',
        "offsets_twice": '"data_offsets":[0,4]',
    }
    return {name: one(value) for name, value in values.items()} | {
        name: beside(field) for name, field in fields.items()
    }


def _dtype() -> dict[str, bytes]:
    known = {name: shaped("[2,4]", bits, name) for name, bits in WIDTH_BITS.items()}
    forms = {
        "object_null": '{"U8":null}',
        "object_escaped": '{"\\u0055\\u0038":null}',
        "object_empty_object": '{"U8":{}}',
        "object_full_object": '{"U8":{"a":1}}',
        "object_empty_array": '{"U8":[]}',
        "object_zero": '{"U8":0}',
        "object_false": '{"U8":false}',
        "object_string": '{"U8":""}',
        "object_twice": '{"U8":null,"U8":null}',
        "object_two": '{"U8":null,"I8":null}',
        "object_unknown": '{"U9":null}',
        "object_without_key": "{}",
        "escaped": '"\\u0055\\u0038"',
        "array": '["U8"]',
        "integer": "4",
        "negative": "-1",
        "fraction": "4.0",
        "null": "null",
        "true": "true",
        "empty_name": '""',
        "lower_case": '"u8"',
        "space_after": '"U8 "',
        "nul_after": '"U8\\u0000"',
        "torch_name": '"torch.uint8"',
        "numpy_name": '"<f4"',
        "unknown": '"F128"',
        "variant_name": '"F8_E4M3FN"',
    }
    return known | {name: one(entry(dtype)) for name, dtype in forms.items()}


def _shape() -> dict[str, bytes]:
    top = 1 << 63
    empty = {
        "zero_then_2_62": f"[0,{1 << 62}]",
        "zero_then_2_63": f"[0,{top}]",
        "zero_then_2_64_less_1": f"[0,{2 * top - 1}]",
        "zero_then_overflow": f"[0,{top},{top}]",
        "overflow_then_zero": f"[{top},{top},0]",
        "two_32_then_zero": f"[{1 << 32},{1 << 32},0]",
        "overflow_wraps_to_zero": f"[{1 << 32},{1 << 32}]",
        "2_63_then_zero": f"[{top},0]",
        "bits_wrap_to_zero": f"[{1 << 61}]",
    }
    four = {
        "too_many": "[5]",
        "too_few": "[3]",
        "no_elements": "[0]",
        "ones": "[1,4,1,1]",
        "65_dimensions": "[" + "1," * 64 + "4]",
        "1000_dimensions": "[" + "1," * 999 + "4]",
        "2_64": f"[{2 * top}]",
        "2_64_less_1": f"[{2 * top - 1}]",
        "overflow_wraps_to_four": f"[{(1 << 62) + 1},4]",
        "bits_wrap_to_right": f"[{(1 << 61) + 4}]",
        "negative": "[-4]",
        "negative_pair": "[-2,-2]",
        "minus_0": "[4,-0]",
        "fraction": "[4.0]",
        "exponent": "[4e0]",
        "leading_zero": "[04]",
        "1e999": "[1e999]",
        "string": '["4"]',
        "true": "[4,true]",
        "null_inside": "[4,null]",
        "nested": "[[4]]",
        "null": "null",
        "number": "4",
        "object": '{"0":4}',
        "text": '"[4]"',
        "trailing_comma": "[4,]",
    }
    return {name: shaped(shape, 0) for name, shape in empty.items()} | {
        name: shaped(shape, 4) for name, shape in four.items()
    }


def _offset_values() -> dict[str, bytes]:
    top = 1 << 64
    pairs = {
        "reversed": "[4,0]",
        "begin_past_zero": "[1,5]",
        "end_short": "[0,3]",
        "end_past_file": "[0,5]",
        "both_past_file": "[4,8]",
        "end_2_64_less_1": f"[0,{top - 1}]",
        "end_2_64": f"[0,{top}]",
        "begin_2_64_less_1": f"[{top - 1},{top - 1}]",
        "sum_wraps": f"[{top - 4},4]",
        "negative": "[-4,0]",
        "minus_0": "[-0,4]",
        "fraction": "[0.0,4]",
        "exponent": "[0,4e0]",
        "string": '["0","4"]',
        "null_inside": "[null,4]",
        "one": "[4]",
        "three": "[0,4,4]",
        "none": "[]",
        "nested": "[[0,4]]",
        "null": "null",
        "number": "4",
        "object": '{"begin":0,"end":4}',
    }
    value = '{{"dtype":"U8","shape":[4],"data_offsets":{}}}'
    return {f"pair_{name}": one(value.format(pair)) for name, pair in pairs.items()}


def _offsets() -> dict[str, bytes]:
    def two(first: tuple[int, int], second: tuple[int, int], size: int = 4) -> bytes:
        spans = {"a": first, "b": second}
        values = {n: entry('"U8"', f"[{e - b}]", b, e) for n, (b, e) in spans.items()}
        return file(table(**values), bytes(range(size)))

    huge = (1 << 61) - 1
    return _offset_values() | {
        "hole": two((0, 2), (3, 4)),
        "hole_at_start": two((1, 2), (2, 4)),
        "hole_at_end": two((0, 2), (2, 3)),
        "overlap": two((0, 3), (2, 4)),
        "overlap_whole": two((0, 4), (0, 4)),
        "overlap_inside": two((0, 4), (1, 2)),
        "overlap_zero_size": two((0, 4), (2, 2)),
        "zero_size_past_end": two((0, 4), (5, 5)),
        "zero_size_at_start": two((0, 0), (0, 4)),
        "second_first": two((2, 4), (0, 2)),
        "one_byte_missing": two((0, 2), (2, 4), 3),
        "one_byte_too_many": two((0, 2), (2, 4), 5),
        "sum_of_all_wraps": two((0, huge), (huge, 2 * huge)),
        "size_not_multiple": one(entry('"F32"', "[1]", 0, 3), FOUR[:3]),
        "size_of_other_dtype": one(entry('"F32"', "[4]", 0, 4)),
        "swapped_sizes": file(
            table(a=entry(shape="[3]", end=1), b=entry(shape="[1]", begin=1)), FOUR
        ),
    }


def _names() -> dict[str, bytes]:
    names = {
        "empty": "",
        "space": " ",
        "escaped_nul": "\\u0000",
        "nul_inside": "a\\u0000b",
        "escaped_newline": "a\\nb",
        "raw_newline": "a\nb",
        "raw_delete": "\x7f",
        "quote_and_backslash": '\\"\\\\',
        "unicode": "\u00e9\u4e2d\u0645\U0001f600",
        "escaped_unicode": "\\u00e9\\ud83d\\ude00",
        "lone_surrogate": "\\ud800",
        "noncharacter": "\uffff",
        "right_to_left": "\u202eabc",
        "path": "../../etc/passwd",
        "metadata_and_space": "__metadata__ ",
        "metadata_capital": "__METADATA__",
        "field": "dtype",
        "long": "n" * 100_000,
        "long_unicode": "\u4e2d" * 30_000,
    }
    low, high = entry(shape="[2]", end=2), entry(shape="[2]", begin=2)
    empty = entry(shape="[0]", end=0)
    return {name: named(text) for name, text in names.items()} | {
        "invalid_utf8": file(b'{"\xff":' + entry().encode() + b"}", FOUR),
        "overlong_utf8": file(b'{"\xc0\xaf":' + entry().encode() + b"}", FOUR),
        "utf8_surrogate": file(b'{"\xed\xa0\x80":' + entry().encode() + b"}", FOUR),
        "composed_and_not": twice(low, high, names=("\u00e9", "e\u0301")),
        "case_only": twice(low, high, names=("a", "A")),
        "duplicate_same_range": twice(entry(), entry()),
        "duplicate_other_range": twice(low, high),
        "duplicate_shorter_first": twice(low, entry()),
        "duplicate_other_dtype": twice(entry(), entry('"I8"')),
        "duplicate_by_escape": twice(entry(), entry(), names=("a", "\\u0061")),
        "duplicate_by_escaped_slash": twice(entry(), entry(), names=("a/b", "a\\/b")),
        "duplicate_around_metadata": twice(entry(), entry(), between='"__metadata__":{},'),
        "duplicate_zero_size": file(f'{{"a":{empty},"a":{empty}}}'),
        "duplicate_empty_name": twice(entry(), entry(), names=("", "")),
        "duplicate_three_times": twice(entry(), entry(), between=f'"a":{entry()},'),
        "duplicate_and_trailing_bytes": twice(entry(), entry()) + b"\0",
        "duplicate_first_bad": twice("4", entry()),
    }


def _metadata() -> dict[str, bytes]:
    values = {
        "some": '{"format":"pt"}',
        "empty": "{}",
        "null": "null",
        "key_twice": '{"a":"1","a":"2"}',
        "key_twice_by_escape": '{"a":"1","\\u0061":"2"}',
        "empty_key_and_value": '{"":""}',
        "unicode": '{"\u00e9":"\\ud83d\\ude00\u4e2d"}',
        "nul": '{"a":"\\u0000"}',
        "own_name_inside": '{"__metadata__":"x"}',
        "long_value": json.dumps({"a": "x" * 1_000_000}),
        "lone_surrogate": '{"a":"\\udfff"}',
        "lone_surrogate_key": '{"\\ud800":"a"}',
        "raw_newline": '{"a":"\n"}',
        "number": '{"a":1}',
        "null_inside": '{"a":null}',
        "true_inside": '{"a":true}',
        "array_inside": '{"a":["b"]}',
        "object_inside": '{"a":{"b":"c"}}',
        "string": '"pt"',
        "array": "[]",
        "zero": "0",
        "false": "false",
        "entry": entry(),
    }
    value = entry()
    return {name: with_metadata(text) for name, text in values.items()} | {
        "last": file(f'{{"a":{value},"__metadata__":{{"k":"v"}}}}', FOUR),
        "alone": file('{"__metadata__":{"k":"v"}}'),
        "name_escaped": file(f'{{"\\u005f_metadata__":{{"k":"v"}},"a":{value}}}', FOUR),
        "twice": file(f'{{"__metadata__":{{}},"__metadata__":{{}},"a":{value}}}', FOUR),
        "twice_null": file(f'{{"__metadata__":null,"__metadata__":null,"a":{value}}}', FOUR),
        "twice_by_escape": file('{"__metadata__":{},"__metadat\\u0061__":{}}'),
        "twice_around_tensor": file(
            f'{{"__metadata__":{{}},"a":{value},"__metadata__":{{}}}}', FOUR
        ),
    }


def _subbyte() -> dict[str, bytes]:
    f4 = {
        "f4_one_byte": ("[2]", 1),
        "f4_matrix": ("[3,2]", 3),
        "f4_empty": ("[0]", 0),
        "f4_empty_rows": ("[0,2]", 0),
        "f4_empty_huge": (f"[0,{1 << 63}]", 0),
        "f4_scalar": ("[]", 0),
        "f4_half_byte": ("[1]", 1),
        "f4_three_halves": ("[3]", 2),
        "f4_odd_last": ("[2,1]", 1),
        "f4_odd_last_matrix": ("[2,3]", 3),
        "f4_odd_last_empty": ("[0,3]", 0),
        "f4_as_if_bytes": ("[4]", 4),
        "f4_bits_overflow": (f"[{1 << 62}]", 0),
        "f4_product_overflow": (f"[{1 << 63},4]", 0),
    }
    f6 = {
        "f6_group": ("[4]", 3),
        "f6_two_groups": ("[2,4]", 6),
        "f6_empty": ("[0]", 0),
        "f6_one": ("[1]", 1),
        "f6_three": ("[3]", 3),
        "f6_as_if_bytes": ("[4]", 4),
    }
    both = table(a=entry('"F4"', "[2,2]", 0, 2), b=entry(shape="[3]", begin=2, end=5))
    return (
        {name: shaped(shape, end, "F4") for name, (shape, end) in f4.items()}
        | {name: shaped(shape, end, "F6_E2M3") for name, (shape, end) in f6.items()}
        | {"f4_beside_u8": file(both, bytes(range(5)))}
    )


def many_tensors(count: int = 100_000) -> bytes:
    """Makes a file of as many tensors, all without bytes."""
    nothing = entry('"F32"', "[0]", 0, 0)
    return file(table(**{f"t{index:05}": nothing for index in range(count)}))


def many_metadata_keys(count: int = 1_000_000) -> bytes:
    """Makes a file without tensors and with as many metadata keys."""
    pairs = ",".join(f'"k{index:06}":"v"' for index in range(count))
    return file(f'{{"__metadata__":{{{pairs}}}}}')


def _cost() -> dict[str, bytes | Callable[[], bytes]]:
    return {
        "header_at_limit": lambda: file(b"{}".ljust(HEADER_BYTES_MAX)),
        "tensors_20000": lambda: many_tensors(20_000),
        "metadata_keys_100000": lambda: many_metadata_keys(100_000),
        "unknown_fields_100000": lambda: beside(",".join('"x":[]' for _ in range(100_000))),
        "unknown_string_of_escapes": lambda: beside('"x":"' + "\\u0041" * 100_000 + '"'),
        "number_of_100000_digits": lambda: beside('"x":0.' + "1" * 100_000),
        "integer_of_100000_digits": lambda: beside('"x":' + "9" * 100_000),
        "nested_a_million": lambda: beside('"x":' + "[" * 1_000_000),
        "dimensions_10000": lambda: shaped("[" + "1," * 9_999 + "4]", 4),
        "name_of_a_million": lambda: named("n" * 1_000_000),
    }


def _foreign() -> dict[str, bytes]:
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 548118077\n"
    protocol = b"}q\x00X\x06\x00\x00\x00weightq\x01]q\x02s."
    good = shaped(f"[{CUT_DATA_BYTES}]", CUT_DATA_BYTES)
    index = {"metadata": {"total_size": 4}, "weight_map": {"a": "model-00001-of-00002.safetensors"}}
    return {
        "empty": b"",
        "lfs_pointer": pointer.encode(),
        "html_page": b"<!DOCTYPE html>\n<html><head><title>Sign in</title></head></html>\n",
        "html_without_doctype": b"\n  <HTML><body>404</body></HTML>",
        "xml_error": b'<?xml version="1.0"?>\n<Error><Code>NoSuchKey</Code></Error>',
        "json_index": json.dumps(index, indent=2).encode(),
        "json_error": b'{"error":"Repository not found"}',
        "zip": b"PK\x03\x04\x00\x00\x08\x08" + bytes(22) + b"archive/data.pkl" + bytes(64),
        "pickle_protocol_2": b"\x80\x02" + protocol,
        "pickle_protocol_4": b"\x80\x04\x95\x1a\x00\x00\x00\x00\x00\x00\x00" + protocol,
        "gguf": b"GGUF\x03\x00\x00\x00" + bytes(56),
        "gzip": gzip.compress(good, mtime=0),
        "gzip_long": gzip.compress(good, mtime=0) + bytes(600_000),
        "numpy": b"\x93NUMPY\x01\x00v\x00{'descr': '<f4', 'fortran_order': False, 'shape': (4,), }",
        "hdf5": b"\x89HDF\r\n\x1a\n" + bytes(56),
        "python_text": b"import torch\n",
        "zeros": bytes(4096),
        "cut_in_length": good[:5],
        "cut_in_header": good[:40],
        "cut_before_data": good[:-CUT_DATA_BYTES],
        "cut_in_data": good[:-400],
    }


GROUPS: dict[str, Callable[[], dict[str, bytes | Callable[[], bytes]]]] = {
    "valid": _valid,
    "envelope": _envelope,
    "json": _json,
    "entry": _entry,
    "dtype": _dtype,
    "shape": _shape,
    "offsets": _offsets,
    "names": _names,
    "metadata": _metadata,
    "subbyte": _subbyte,
    "cost": _cost,
    "foreign": _foreign,
}
