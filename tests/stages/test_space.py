"""Named parameters as one vector and back, for any shapes and dtypes."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stagetrace.errors import DescriptionError
from stagetrace.stages.space import ParameterSpace, Params

DTYPES = (torch.bfloat16, torch.float16, torch.float32, torch.float64)
shapes = st.lists(st.integers(0, 3), max_size=3).map(tuple)


@st.composite
def parameters(draw: st.DrawFn, dtypes: tuple[torch.dtype, ...] = DTYPES) -> Params:
    drawn = draw(st.dictionaries(st.text("abc.", min_size=1), st.tuples(shapes, st.sampled_from(dtypes)), max_size=4))
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=generator).to(dtype) for name, (shape, dtype) in drawn.items()}


def assert_same(one: Params, other: Params) -> None:
    assert list(one) == list(other)
    for name, value in one.items():
        torch.testing.assert_close(other[name], value, rtol=0, atol=0)


@given(parameters())
def test_a_vector_returns_to_its_parameters(params: Params):
    space = ParameterSpace.of(params)
    vector = space.flatten(params)
    assert vector.shape == (space.size,) == (sum(p.numel() for p in params.values()),)
    assert vector.dtype == space.dtype
    assert_same(params, space.unflatten(vector))


@given(parameters(), st.integers(1, 3))
def test_columns_return_to_their_parameters(params: Params, columns: int):
    if not params:
        return
    space = ParameterSpace.of(params)
    stacked = {name: torch.stack([value + column for column in range(columns)]) for name, value in params.items()}
    vectors = space.flatten_columns(stacked)
    assert vectors.shape == (space.size, columns)
    assert_same(stacked, space.unflatten_columns(vectors))
    for column in range(columns):
        one = {name: value[column] for name, value in stacked.items()}
        torch.testing.assert_close(vectors[:, column], space.flatten(one), rtol=0, atol=0)


@given(parameters((torch.float64,)), st.data())
def test_slices_and_masks_say_where_a_parameter_lies(params: Params, data: st.DataObject):
    space = ParameterSpace.of(params, like=torch.zeros(0, dtype=torch.float64))
    vector = space.flatten(params)
    for name, where in space.slices().items():
        torch.testing.assert_close(vector[where], params[name].reshape(-1), rtol=0, atol=0)
    chosen = data.draw(st.sets(st.sampled_from(sorted(params)))) if params else set()
    kept = {name: value if name in chosen else torch.zeros_like(value) for name, value in params.items()}
    torch.testing.assert_close(space.mask(chosen) * vector, space.flatten(kept), rtol=0, atol=0)


@given(parameters())
def test_vectors_have_the_widest_dtype(params: Params):
    space = ParameterSpace.of(params, like=torch.zeros(1, dtype=torch.float64))
    expected = torch.float64 if not params else next(iter(params.values())).dtype
    for value in params.values():
        expected = torch.promote_types(expected, value.dtype)
    assert space.dtype == expected
    assert space.zeros(2).dtype == expected
    assert space.zeros(2).shape == (space.size, 2)


def test_an_empty_space_takes_dtype_and_device_from_another():
    space = ParameterSpace.of({}, like=torch.zeros(1, dtype=torch.float64))
    assert (space.size, space.dtype, space.device) == (0, torch.float64, torch.device("cpu"))
    assert space.flatten({}).dtype == space.mask([]).dtype == torch.float64
    assert space.unflatten(space.flatten({})) == {}


def test_parameters_on_several_devices_are_refused():
    with pytest.raises(DescriptionError, match=r"several devices \(cpu, meta\); move the model to one"):
        ParameterSpace.of({"a": torch.zeros(1), "b": torch.zeros(1, device="meta")})


@pytest.mark.parametrize("dtype", [torch.int64, torch.complex64, torch.bool])
def test_parameters_that_are_not_real_are_refused(dtype: torch.dtype):
    with pytest.raises(DescriptionError, match=f"parameter 'b' has dtype {dtype}; only real floating.point"):
        ParameterSpace.of({"a": torch.zeros(1), "b": torch.zeros(1, dtype=dtype)})
