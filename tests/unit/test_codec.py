"""Plain values as pickles: the same as pickle makes of them, or refused."""

from __future__ import annotations

import collections
import enum
import math
import pickle
import random
import struct
from typing import Any, NamedTuple

import pytest

from billiard._core import plain_dumps, plain_loads

PROTOCOLS = range(2, pickle.HIGHEST_PROTOCOL + 1)
#: what the codec says to be its limits
SHORT, MOST_BYTES, MOST, DEEPEST = 64, 64 << 10, 16 << 20, 32


class Number(enum.IntEnum):
    ONE = 1


class Word(str):
    pass


class Pair(NamedTuple):
    first: int
    second: int


def same(one: Any, other: Any) -> bool:
    """Equal, in all types and in the order of dicts, with signs of zero and payloads of NaN."""
    if type(one) is not type(other):
        return False
    if type(one) is float:
        return struct.pack("d", one) == struct.pack("d", other)
    if type(one) in (list, tuple):
        return len(one) == len(other) and all(map(same, one, other))
    if type(one) is dict:
        return same(list(one.items()), list(other.items()))
    return bool(one == other)


def nested(depth: int, kind: type) -> Any:
    """A value in so many containers."""
    value: Any = 7
    for _ in range(depth):
        value = {1: value} if kind is dict else kind([value])
    return value


def dumps(value: Any) -> bytes:
    """The pickle of what has to be plain."""
    data = plain_dumps(value)
    assert data is not None
    return data


def check(value: Any) -> bytes:
    """What we write, pickle reads; what pickle writes, we read; and we read what we write."""
    data = dumps(value)
    assert same(pickle.loads(data), value)
    assert same(plain_loads(data), value)
    for protocol in PROTOCOLS:
        written = pickle.dumps(value, protocol)
        try:
            read = plain_loads(written)
        except ValueError:
            continue  # an object that comes twice, or bytes before protocol 3
        assert same(read, value)
    return data


NUMBERS = [
    *(sign * (1 << bits) + more for bits in range(130) for sign in (1, -1) for more in (-1, 0, 1)),
    *(sign * 3**power for power in range(0, 1280, 71) for sign in (1, -1)),
    2**2039 - 1,
    -(2**2039),
]
SCALARS = [
    None,
    True,
    False,
    0.0,
    -0.0,
    0.1,
    -1e300,
    5e-324,
    math.inf,
    -math.inf,
    math.nan,
    struct.unpack("d", struct.pack("Q", 0xFFF8_0000_DEAD_BEEF))[0],
    *("x" * n for n in (0, 1, 2, 3, 4, 7, 8, 9, 16, 17, 24, 25, 254, 255, 256, 70_000)),
    *(letter * n for n in (1, 5, 100) for letter in ("é", "€", "😀", "\0", "\n")),
    *(b"\xff" * n for n in (0, 1, 255, 256, MOST_BYTES)),
]


def test_numbers_of_all_sizes() -> None:
    for number in NUMBERS:
        data = check(number)
        # as short as pickle has it
        assert len(data) == len(pickle.dumps(number, 2))


def test_scalars() -> None:
    for value in SCALARS:
        short = len(repr(value)) < SHORT
        check(value)
        check([value, value] if short else [value])
        check({value: value} if short else {value: None})


@pytest.mark.parametrize("kind", [tuple, list])
def test_sequences_of_every_length(kind: type) -> None:
    for length in (0, 1, 2, 3, 4, 5, 31, 32, 33, 1000, 1001, 25_000):
        check(kind(range(length)))
        check(kind(n / 3 for n in range(length)))
        check(kind(f"n{n}" for n in range(length)))
        check([kind(range(length)), kind(range(length)), {1: kind(range(length))}])
        # an empty container and a tuple begin as a list and its items do
        check(((), [], tuple(range(length)), {}, tuple(range(length)), [tuple(range(length))]))


def test_dicts_keep_their_order() -> None:
    for length in (0, 1, 2, 8, 9, 1000, 1001, 10_000):
        keys = list(range(length))
        random.Random(length).shuffle(keys)
        check({key: str(key) for key in keys})
        check({f"key {key}": key for key in keys})
        check({(key, "x"): [key] for key in keys})


def test_rows_with_the_same_keys() -> None:
    rows = [{"id": i, "name": f"n{i}", "tags": ["a", "b"], "x": i / 2} for i in range(2_000)]
    check(rows)
    check(tuple(rows))


def test_keys_that_differ_in_one_place_stay_apart() -> None:
    """Short keys are remembered by what they have in them."""
    for length in range(1, 28):
        keys = {
            "a" * place + letter + "a" * (length - place - 1)
            for place in range(length)
            for letter in "\0abé"
        }
        for _ in range(3):
            check(dict.fromkeys(sorted(keys), 1))
            check([{key: [key]} for key in keys])


def random_value(dice: random.Random, depth: int) -> Any:
    kind = dice.randrange(7 if depth == 0 else 11)
    if kind == 0:
        return dice.choice([None, True, False])
    if kind <= 2:
        return dice.getrandbits(dice.choice([3, 8, 16, 32, 64, 65, 200])) * dice.choice([1, -1])
    if kind == 3:
        return struct.unpack("d", dice.randbytes(8))[0]
    if kind <= 5:
        points = dice.choice([128, 0x500, 0xD800, 0x11_0000 - 0x800])
        text = (dice.randrange(points) for _ in range(dice.choice([0, 1, 5, 12, 40, 300])))
        return "".join(chr(point if point < 0xD800 else point + 0x800) for point in text)
    if kind == 6:
        return dice.randbytes(dice.choice([0, 3, 60, 300]))
    length = dice.choice([0, 1, 2, 3, 4, 5, 9])
    if kind == 7:
        return tuple(random_value(dice, depth - 1) for _ in range(length))
    if kind == 8:
        return [random_value(dice, depth - 1) for _ in range(length)]
    keys = (random_value(dice, 0) for _ in range(length))
    return {key: random_value(dice, depth - 1) for key in keys}


@pytest.mark.parametrize("seed", range(4))
def test_random_values(seed: int) -> None:
    dice = random.Random(seed)
    for _ in range(500):
        check(random_value(dice, 5))


@pytest.mark.parametrize("kind", [tuple, list, dict])
def test_nesting_ends_somewhere(kind: type) -> None:
    check(nested(DEEPEST, kind))
    assert plain_dumps(nested(DEEPEST + 1, kind)) is None
    assert plain_dumps(nested(100_000, tuple)) is None


NOT_PLAIN = [
    Number.ONE,
    Word("x"),
    Pair(1, 2),
    collections.OrderedDict(a=1),
    collections.defaultdict(int),
    collections.Counter("a"),
    bytearray(b"x"),
    memoryview(b"x"),
    1j,
    {1},
    frozenset(),
    range(3),
    ...,
    int,
    len,
    object(),
    ValueError(),
    "\ud800",
    "text \udcff",
    b"x" * (MOST_BYTES + 1),
    "x" * (MOST + 1),
    2**2039,
    -(2**2039) - 1,
    1 << 5_000_000,
]


def test_anything_else_is_refused() -> None:
    for value in NOT_PLAIN:
        for holder in (value, (value,), [1, value, 2], {"a": {"b": value}}, (1, 2, [(value,)])):
            assert plain_dumps(holder) is None


def test_unhashable_or_not_a_key_of_a_plain_dict() -> None:
    assert plain_dumps({Number.ONE: 1}) is None
    assert plain_dumps({Pair(1, 2): 1}) is None
    assert plain_dumps({frozenset(): 1}) is None


def test_lists_and_dicts_that_are_met_twice_are_refused() -> None:
    for inner in ([], [1], {}, {1: 2}):
        for twice in (
            [inner, inner],
            (inner, inner),
            ((inner,), inner),
            {1: inner, 2: inner},
            {1: inner, 2: [(3, [inner])]},
        ):
            assert plain_dumps(twice) is None
        # also with many in between
        many: list[Any] = [[n] for n in range(1000)]
        assert plain_dumps([inner, *many]) is not None
        assert plain_dumps([inner, *many, inner]) is None
        assert plain_dumps([*many, many[17]]) is None
        holder = (inner,)
        assert plain_dumps((holder, holder)) is None
    equal: list[Any] = [[], [], {}, {}]
    check(equal)


def test_cycles_are_refused() -> None:
    ring: list[Any] = [1]
    ring.append(ring)
    assert plain_dumps(ring) is None
    assert plain_dumps((ring,)) is None
    table: dict[str, Any] = {"a": 1}
    table["b"] = (table,)
    assert plain_dumps(table) is None
    one: list[Any] = []
    other = [one]
    one.append({"other": other})
    assert plain_dumps(one) is None


@pytest.mark.parametrize(
    "value", ["x" * 100, b"x" * 100, tuple(range(100)), ("x" * 70,)], ids=["str", "bytes", "t", "u"]
)
def test_what_is_large_and_met_twice_is_left_to_pickle(value: Any) -> None:
    check([value])
    assert plain_dumps([value, value]) is None
    assert plain_dumps({1: value, 2: (value,)}) is None


def test_doubling_tuples_take_no_more_time_than_they_have_objects() -> None:
    value: Any = (1, 2)
    for _ in range(30):  # 2**30 numbers, if each was written where it is
        value = (value, value)
    assert plain_dumps(value) is None


def test_small_immutable_objects_may_come_again() -> None:
    pair = (1, "x")
    check([pair, pair, {"a": pair}])
    text = "word"
    check([text] * 100)


def test_more_than_fits_is_refused() -> None:
    assert plain_dumps([float(n) for n in range(MOST // 9 + 1)]) is None
    assert plain_dumps(tuple(float(n) for n in range(MOST // 9 + 1))) is None
    assert plain_dumps(dict.fromkeys(map(float, range(MOST // 10 + 1)))) is None
    assert plain_dumps([("x" * (MOST // 2 + n)) for n in range(2)]) is None


def test_several_values_may_not_share_a_list() -> None:
    items, table = [1, 2], {"a": 1}
    data = plain_dumps((1, items), table)
    assert data is not None
    assert pickle.loads(data) == plain_loads(data) == ((1, items), table)
    assert plain_dumps((items,), {"a": items}) is None
    assert plain_dumps(1, object()) is None
    for number in range(2, 7):
        data = plain_dumps(*range(number))
        assert data is not None
        assert pickle.loads(data) == tuple(range(number))


def test_surrogates_of_the_pickler_are_read() -> None:
    for text in ("\ud800", "a\udcffb"):
        assert plain_loads(pickle.dumps(text)) == text


def test_what_has_been_read_is_new() -> None:
    data = dumps([{"a": [1]}, {"a": [1]}])
    one, other = plain_loads(data), plain_loads(data)
    one[0]["a"].append(2)
    one[1]["b"] = 3
    assert other == [{"a": [1]}, {"a": [1]}] == plain_loads(data)


@pytest.mark.parametrize(
    "value",
    [Number.ONE, Pair(1, 2), {1}, 1j, bytearray(b"x"), len, ValueError(1), [1, 2, (3, range(4))]],
    ids=lambda value: type(value).__name__,
)
def test_pickles_of_other_things_are_refused(value: Any) -> None:
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        with pytest.raises(ValueError, match="plain"):
            plain_loads(pickle.dumps(value, protocol))


def test_pickles_of_what_comes_twice_are_refused() -> None:
    items = [1, 2]
    ring: list[Any] = []
    ring.append(ring)
    for value in ([items, items], ring, ["text", "text"]):
        with pytest.raises(ValueError, match="plain"):
            plain_loads(pickle.dumps(value))


MALFORMED = [
    b"",
    b".",
    b"N",
    b"N..",
    b"NN.",
    b"\x80\x06N.",
    b"K\x01K\x02s.",
    b"(K\x01.",
    b"]K\x01K\x02s.",
    b"}K\x01a.",
    b"}]Ns.",  # a list for a key
    b"}(}Nu.",
    b"}](\x85Ns.",
    b"\x8c\x02\xff\xfe.",  # no UTF-8
    b"}(\x8c\x02\xff\xfeNu.",
    b"X\xff\xff\xff\x7f.",
    b"\x8d" + b"\xff" * 8 + b".",
    b"\x8e" + b"\xff" * 8 + b".",
    b"cos\nsystem\n(K\x01tR.",
    b"\x80\x04\x95" + b"\0" * 8 + b"K\x01h\0.",
    b"h\0.",
    b"K\x010.",
]


def test_what_is_no_plain_pickle_is_refused() -> None:
    for data in MALFORMED:
        with pytest.raises(ValueError, match="plain"):
            plain_loads(data)


def test_endless_tuples_overflow_nothing() -> None:
    deep = b")" + b"\x85" * 1_000_000
    assert type(plain_loads(deep + b".")) is tuple
    with pytest.raises(ValueError, match="plain"):  # its hash would
        plain_loads(b"}" + deep + b"Ns.")


SAMPLES = [
    12345678901,
    "héllo",
    (1, "abc", 0.5, None, True),
    [1, [2, [3, (4,)]], {"k": b"bytes", (1, 2): -1}],
    {"id": 7, "name": "n5", "tags": ["a", "b"], "x": 0.5},
    2**100,
]


@pytest.mark.parametrize("value", SAMPLES, ids=repr)
def test_every_truncation_is_refused(value: Any) -> None:
    for data in (dumps(value), pickle.dumps(value)):
        for end in range(len(data)):
            with pytest.raises(ValueError, match="plain"):
                plain_loads(data[:end])


@pytest.mark.parametrize("value", SAMPLES, ids=repr)
def test_every_damage_of_a_byte_is_refused_or_is_another_value(value: Any) -> None:
    read = 0
    for data in (dumps(value), pickle.dumps(value)):
        for at in range(len(data)):
            for byte in range(256):
                damaged = data[:at] + bytes([byte]) + data[at + 1 :]
                try:
                    other = plain_loads(damaged)
                except ValueError:
                    continue
                read += 1
                assert type(other) in (int, str, float, tuple, list, dict, bytes, bool, type(None))
                repr(other)
                if data[2] != 0x95:  # what frames claim is only of interest to their reader
                    assert same(pickle.loads(damaged), other)
    assert read > 100


#: what plain pickles are made of
PIECES = [
    *(bytes([op]) for op in b"N\x88\x89()\x85\x86\x87t]ae}su\x94"),
    *(b"(", b"](", b"}(", b"K\x01", b"K\x02", b"M\x00\x01", b"J\xff\xff\xff\xff"),
    *(b"\x8a\x00", b"\x8a\x02\x00\xff", b"G?\xe0" + b"\0" * 6, b"\x8c\x01a", b"\x8c\x02\xc3\xa9"),
    *(b"X\1\0\0\0b", b"\x8d\1" + b"\0" * 7 + b"c", b"C\1d", b"B\0\0\0\0", b"q\x05"),
]


@pytest.mark.parametrize("seed", range(3))
def test_any_program_that_is_read_is_read_as_pickle_reads_it(seed: int) -> None:
    dice = random.Random(seed)
    read = 0
    for _ in range(40_000):
        pieces = dice.choices(PIECES, k=dice.randrange(1, 12))
        if dice.random() < 0.6:  # most stacks end with more or less than one value
            pieces.append(b"t")
            pieces.insert(0, b"(")
        program = b"\x80\x04" + b"".join(pieces) + b"."
        try:
            value = plain_loads(program)
        except ValueError:
            continue
        read += 1
        assert same(pickle.loads(program), value), program
    assert read > 1_000


def test_finalizers_that_run_meanwhile_find_nothing_broken() -> None:
    """Lists and tuples that are being made are seen by the collector when all is in them."""
    import gc

    seen: list[int] = []

    class Noisy:
        def __init__(self) -> None:
            self.me = self

        def __del__(self) -> None:
            for found in gc.get_objects(0):
                if type(found) in (list, tuple, dict):
                    repr(type(found)), len(found), list(found)
            seen.append(len(dumps([(1, [2]), {"a": (3, 4)}])))
            plain_loads(dumps([(1, [2]), {"a": (3, 4)}]))

    value = [[n, (n, [n])] for n in range(500)]
    data = dumps(value)
    old = gc.get_threshold()
    gc.set_threshold(20, 2, 2)
    try:
        for _ in range(20):
            Noisy()
            assert plain_loads(data) == value
            assert dumps(value) == data
    finally:
        gc.set_threshold(*old)
    gc.collect()
    assert len(seen) == 20
