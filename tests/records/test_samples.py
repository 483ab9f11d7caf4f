"""Columns of samples.parquet, made without pandas."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from robench.records.samples import column, encode_table

texts = st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=8), max_size=20)


def same(values, plain, kind):
    made, expected = column(values, kind), pa.array(plain, kind)
    made.validate(full=True)
    files = [encode_table(pa.table([array], names=["a"])) for array in (made, expected)]
    assert made.type == kind and made.null_count == 0 and files[0] == files[1]


@given(texts)
def test_strings_are_those_of_pyarrow(values):
    same(values, values, pa.string())


@pytest.mark.parametrize("kind", [pa.int64(), pa.float32(), pa.float64()])
def test_numbers_are_those_of_pyarrow(kind):
    dtype = kind.to_pandas_dtype()

    @given(arrays.arrays(dtype, st.integers(0, 30)))
    def check(values):
        same(values, values, kind)
        same(values[::2], values[::2], kind)

    check()


@given(arrays.arrays(np.int64, st.tuples(st.integers(0, 12), st.integers(0, 5)), elements=st.integers(-9, 9)))
def test_lists_are_those_of_pyarrow(values):
    same(values, values.tolist(), pa.list_(pa.int32()))
