"""int8 and int4 as `minillm.quantize` writes them (`weights/ints.py`).

    int8         W[o, i] = q[o, i] s[o]
    int4, int6   W[o, i] = (q[o, i] - z[o, i / g]) s[o, i / g] f[o]

A tensor X has q under its own name, `X_scale`, and of int4 `X_factor` and where it has zeros `X_zero`. Rows are in the
order that the model has them in, whatever layout the plain tensor was published in, those of all experts one under the
other. config.json says "quant_method": "minillm", and what the group size of int4 is.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from torch import Tensor

from minillm.weights import ints
from minillm.weights.formats.packed import METADATA, Infos, Packed, Section, Stays, expect, matrix, spelled
from minillm.weights.grouped import Fields
from minillm.weights.ints import Int6, Int8, Integers
from minillm.weights.source import NAMES

TITLE = "integers"
SPELLINGS, OPTIONAL = (("", "_scale"),), ("_factor", "_zero")


def matrices(infos: Infos, section: Section) -> dict[str, Packed]:
    """The tensors with companions of a folder that this project wrote."""
    scheme = ints.read({key: value for key, value in section.items() if key != METADATA})
    if scheme is None:
        return {}
    return {name: _packed(infos, name, scheme) for name in spelled(infos, SPELLINGS[0], OPTIONAL)}


def _packed(infos: Infos, name: str, scheme: Integers) -> Packed:
    """A matrix of as many columns as its bytes have room for, or of as many less as its factors say."""
    found = infos[name]
    made: Integers = Int8() if found.dtype == "I8" else Int6() if len(found.shape) == 3 else scheme
    if isinstance(made, Int6) and 0 not in found.shape:
        rows, columns, least = found.shape[0], 4 * found.shape[2], 4 * found.shape[2] - 3
    else:
        rows, columns = matrix(name, found, TITLE)
        columns, least = (columns, columns) if isinstance(made, Int8) else (2 * columns, 2 * columns - 1)
    wanted = made.parts((rows, columns))
    if missing := [f"{name}{ending}" for ending in wanted if f"{name}{ending}" not in infos]:
        raise ValueError(f"{missing[0]} is missing, without which {name} is no {TITLE}; write the folder again")
    names = {ending: f"{name}{ending}" for ending in wanted}

    def of_width(count: int) -> Packed | None:
        if any(infos[names[ending]].shape != shape for ending, (shape, _) in made.parts((rows, count)).items()):
            return None
        read = partial(fields, name=name, made=made, columns=count)
        stays, title = Stays(made.form, read, by_rows=True), f"{TITLE} of {made.form.bits} bits"
        values = partial(dequantise, name=name, made=made, columns=count)
        return Packed(title, (rows, count), names, values, stays=stays, of_width=of_width)

    packed = next(filter(None, map(of_width, range(columns, least - 1, -1))), None)
    for ending, (shape, dtype) in wanted.items():
        here = infos[names[ending]]
        expect(names[ending], here, here.shape if packed else shape, (NAMES[dtype],), TITLE)
    assert packed is not None  # or some shape is not as expected
    return packed


def dequantise(parts: Mapping[str, Tensor], name: str, made: Integers, columns: int) -> Tensor:
    """fp32 `[O, I]`."""
    return made.form.values(fields(parts, name, made, columns))


def fields(parts: Mapping[str, Tensor], name: str, made: Integers, columns: int) -> Fields:
    """Rows as they go into a form. Raises ValueError for factors that quantising makes none of."""
    for ending, values in parts.items():
        if ending and not ints.sound(ending, values):
            raise ValueError(f"{name}{ending} has values that no factor has; write the folder again")
    return made.fields(parts, columns)
