"""The public transformations, with the signatures and the meaning of JAX's.

This room knows pytrees, argument numbers and errors; the engine below it sees flat lists of arrays.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import jax.ref
import numpy as np

from fbp import _compat
from fbp.core import Rulebook, is_inexact, value, zeros
from fbp.engine import Differentiate, Pullback
from fbp.rules import RULES


@jax.tree_util.register_pytree_node_class
class VJP:
    """The pullback of `fbp.vjp`: `y_bar -> (x_bar, ...)` in the structures of the function's output and arguments.

    A pytree of its residuals; `jax.tree.leaves(pullback)` shows what the backward pass keeps."""

    def __init__(self, pullback: Pullback, ins, outs, name: str):
        self._pullback = pullback
        self._ins = ins  # (tree, avals) of the arguments
        self._outs = outs  # (tree, avals) of the output
        self._name = name  # of the function

    def __call__(self, y_bar, *more):
        if more:
            raise TypeError(
                f"The function returned by fbp.vjp applied to {self._name} was called with {1 + len(more)} arguments, but "
                "takes a single one: the cotangent of the one value that the differentiated function returned, a tuple where "
                "that is a tuple."
            )
        x_bars = self._pullback(*_check_cotangent(y_bar, *self._outs))
        in_tree, in_avals = self._ins
        return jax.tree.unflatten(
            in_tree, [zeros(aval) if x is None else x for x, aval in zip(x_bars, in_avals, strict=True)]
        )

    def with_refs(self, *refs) -> Callable:
        """The pullback that adds cotangents to mutable references, in place, as that of `jax.vjp` does.

        refs: in the structure of the arguments; for each leaf a reference (`jax.new_ref`) of its shape and dtype, or
        `jax.ad.GradValue()` to have its cotangent returned, or `jax.ad.DontWant()`.

        >>> import jax
        >>> total = jax.new_ref(1.0)
        >>> _, pullback = vjp(lambda x: x * x, 3.0)
        >>> _ = pullback.with_refs(total)(1.0)
        >>> float(total[...])
        7.0
        """
        _check_references(refs, *self._ins)

        def accumulate(y_bar, *more):
            return jax.tree.map(_accumulated, refs, self(y_bar, *more))

        return accumulate

    def tree_flatten(self):
        return (self._pullback,), (self._ins, self._outs, self._name)

    @classmethod
    def tree_unflatten(cls, aux, children):
        return cls(*children, *aux)


@_compat.api_boundary
def vjp(fun: Callable, *primals, has_aux: bool = False, rules: Rulebook = RULES) -> Any:
    """Value and pullback of `fun`, as `jax.vjp`: `y, pullback = vjp(fun, *primals)`, `x_bars = pullback(y_bar)`.

    y = f(x)  =>  x_bar = y_bar · ∂f/∂x, a tuple with one cotangent for each of `primals`, of its shape and dtype
    (`float0` for integers). With `has_aux`, `fun` returns `(y, aux)` and the result is `y, pullback, aux`.

    fun: a function of pytrees of arrays.
    rules: the rulebook that the reverse pass is read through.

    The pullback is a pytree whose leaves are the residuals, so it can leave a `jit`.

    Raises TypeError if an argument or output is not an array or `rules` no rulebook, ValueError if the pullback gets a
    cotangent of another structure, shape or dtype than the output.

    >>> y, pullback = vjp(lambda x, y: x * y, 2.0, 3.0)
    >>> float(y), tuple(map(float, pullback(1.0)))
    (6.0, (3.0, 2.0))
    """
    _check_callable("vjp", fun)
    if not isinstance(rules, Rulebook):
        raise TypeError(f"rules must be a rulebook, but got {type(rules).__name__}. Write rules=fbp.RULES | {{...}}.")
    leaves, tree = jax.tree.flatten(primals)
    xs = [_as_value(leaf, f"argument {keys}") for leaf, keys in zip(leaves, _key_paths(primals), strict=True)]
    avals = tuple(jax.typeof(x) for x in xs)
    needs = [is_inexact(aval) for aval in avals]
    # What is not differentiated comes to the function as it was given: an int is still one, in a `jit` too.
    xs = [x if needed else leaf for x, needed, leaf in zip(xs, needs, leaves, strict=True)]
    out_tree = aux_tree = None
    n_out = 0

    def flat_fun(*xs):
        nonlocal out_tree, aux_tree, n_out
        out = fun(*jax.tree.unflatten(tree, xs))
        aux = None
        if has_aux:
            if not (isinstance(out, tuple | list) and len(out) == 2):
                raise TypeError(
                    "expected function with aux output to return a two-element tuple, (output, aux), but got type "
                    f"{type(out)} with value {out!r}."
                )
            out, aux = out
        ys, out_tree = jax.tree.flatten(out)
        ys = [_as_value(y, f"output {keys}") for y, keys in zip(ys, _key_paths(out), strict=True)]
        n_out = len(ys)
        aux_leaves, aux_tree = jax.tree.flatten(aux)
        return [*ys, *aux_leaves]

    outputs, pullback = Differentiate(rules)(flat_fun, needs, *xs, at_hand=True)
    outputs = [value(y) for y in outputs]
    ys, aux = outputs[:n_out], outputs[n_out:]
    pullback = pullback.only(slice(n_out))
    y = jax.tree.unflatten(out_tree, ys)
    result = VJP(pullback, (tree, avals), (out_tree, tuple(jax.typeof(y) for y in ys)), _name(fun))
    return (y, result, jax.tree.unflatten(aux_tree, aux)) if has_aux else (y, result)


def value_and_grad(
    fun: Callable,
    argnums: int | Sequence[int] = 0,
    has_aux: bool = False,
    holomorphic: bool = False,
    allow_int: bool = False,
    *,
    rules: Rulebook = RULES,
) -> Callable:
    """The function that returns `(fun(...), gradient)`, as `jax.value_and_grad`. Arguments as for `fbp.grad`.

    >>> value, gradient = value_and_grad(lambda x: x * x)(3.0)
    >>> float(value), float(gradient)
    (9.0, 6.0)
    """
    _check_callable("value_and_grad", fun)
    argnums = _check_argnums(argnums)

    @_named_after(fun, "The value and the gradient", argnums)
    @_compat.api_boundary
    def value_and_grad_fun(*args, **kwargs):
        selected, partial = _select_args(fun, argnums, args, kwargs)
        _check_inputs("grad", selected, argnums, holomorphic, allow_int)
        y, pullback, *aux = vjp(partial, *selected, has_aux=has_aux, rules=rules)
        _check_scalar(y, holomorphic)
        x_bars = pullback(_one_like(y))
        return ((y, *aux) if has_aux else y), (x_bars[0] if isinstance(argnums, int) else x_bars)

    return value_and_grad_fun


def grad(
    fun: Callable,
    argnums: int | Sequence[int] = 0,
    has_aux: bool = False,
    holomorphic: bool = False,
    allow_int: bool = False,
    *,
    rules: Rulebook = RULES,
) -> Callable:
    """The gradient function of a scalar function, as `jax.grad`: a drop-in.

    fun: returns a scalar, or `(scalar, aux)` with `has_aux`.
    argnums: which positional argument(s) to differentiate; an int gives one gradient, a sequence a tuple of them.
    holomorphic: whether `fun` is promised to be holomorphic: complex inputs and output.
    allow_int: whether integer inputs are allowed; their gradient is of dtype `float0`.
    rules: the rulebook that the reverse pass is read through.

    Raises TypeError if the output is not a real scalar, or if an input has no gradient (integers).

    >>> float(grad(lambda x: x * x)(3.0))
    6.0
    """
    _check_callable("grad", fun)
    value_and_grad_fun = value_and_grad(fun, argnums, has_aux, holomorphic, allow_int, rules=rules)

    @_named_after(fun, "The gradient", argnums)
    @_compat.api_boundary
    def grad_fun(*args, **kwargs):
        y, gradient = value_and_grad_fun(*args, **kwargs)
        return (gradient, y[1]) if has_aux else gradient

    return grad_fun


def jacrev(
    fun: Callable,
    argnums: int | Sequence[int] = 0,
    has_aux: bool = False,
    holomorphic: bool = False,
    allow_int: bool = False,
    *,
    rules: Rulebook = RULES,
) -> Callable:
    """The Jacobian by reverse mode, row by row, as `jax.jacrev`. Arguments as for `fbp.grad`; `fun` need not be scalar.

    y = f(x), x: [n], y: [m]  =>  J[i, j] = ∂y_i/∂x_j: [m, n]. For pytrees, a tree of outputs of trees of inputs.

    >>> import jax.numpy as jnp
    >>> jacrev(lambda x: x * x)(jnp.array([1.0, 2.0])).tolist()
    [[2.0, 0.0], [0.0, 4.0]]
    """
    _check_callable("jacrev", fun)
    argnums = _check_argnums(argnums)

    @_named_after(fun, "The Jacobian", argnums)
    @_compat.api_boundary
    def jacobian(*args, **kwargs):
        selected, partial = _select_args(fun, argnums, args, kwargs)
        _check_inputs("jacrev", selected, argnums, holomorphic, allow_int)
        y, pullback, *aux = vjp(partial, *selected, has_aux=has_aux, rules=rules)
        for leaf in jax.tree.leaves(y):
            _check_output_dtype("jacrev", jax.typeof(leaf), holomorphic)
        rows = jax.tree.map(lambda leaf, basis: _rows(pullback, basis, leaf, selected), y, _one_hot_cotangents(y))
        if isinstance(argnums, int):
            rows = jax.tree.map(lambda _, row: row[0], y, rows)
        return (rows, *aux) if has_aux else rows

    return jacobian


def hessian(
    fun: Callable,
    argnums: int | Sequence[int] = 0,
    has_aux: bool = False,
    holomorphic: bool = False,
    *,
    rules: Rulebook = RULES,
) -> Callable:
    """The Hessian, forward over reverse, as `jax.hessian`. H[i, j] = ∂²f/∂x_i∂x_j.

    >>> import jax.numpy as jnp
    >>> hessian(lambda x: x[0] * x[0] * x[1])(jnp.array([1.0, 3.0])).tolist()
    [[6.0, 2.0], [2.0, 0.0]]
    """
    reverse = jacrev(fun, argnums, has_aux, holomorphic, rules=rules)
    return jax.jacfwd(reverse, argnums, has_aux=has_aux, holomorphic=holomorphic)


def as_custom_vjp(fun: Callable, *, rules: Rulebook = RULES) -> Callable:
    """`fun`, with fbp's backward pass for whoever differentiates it: code that calls `jax.grad` gets the rules given here.

    As a `jax.custom_vjp`, it has no forward mode, and it differentiates with respect to its arguments, not to what it
    closes over.

    >>> import fbp, jax
    >>> double = as_custom_vjp(lambda x: -x, rules=RULES | {jax.lax.neg_p: fbp.table(lambda g: 2 * g)})
    >>> float(jax.grad(double)(3.0))
    2.0
    """
    _check_callable("as_custom_vjp", fun)
    with_rules = jax.custom_vjp(fun)
    with_rules.defvjp(lambda *args: vjp(fun, *args, rules=rules), lambda pullback, y_bar: pullback(y_bar))
    return functools.wraps(fun)(with_rules)


def _named_after(fun: Callable, what: str, argnums: Any) -> Callable[[Callable], Callable]:
    """Decorates a derivative of `fun` with its name, and says in its docstring what it is."""

    def name(derivative: Callable) -> Callable:
        derivative = functools.wraps(fun, assigned=("__module__", "__name__", "__qualname__"))(derivative)
        of = _name(fun)
        derivative.__doc__ = f"{what} of {of} with respect to positional argument(s) {argnums}. Takes what {of} takes."
        return derivative

    return name


def _name(fun: Callable) -> str:
    return getattr(fun, "__name__", repr(fun))


def _one_hot_cotangents(y: Any) -> Any:
    """For each leaf of y, the cotangents [leaf.size, ...] of y that pick its elements one by one."""
    leaves, tree = jax.tree.flatten(y)

    def cotangents(i):
        basis = jnp.eye(leaves[i].size, dtype=leaves[i].dtype).reshape(leaves[i].size, *leaves[i].shape)
        zeros = [jnp.zeros((leaves[i].size, *jnp.shape(leaf)), _bar_dtype(jax.typeof(leaf))) for leaf in leaves]
        return jax.tree.unflatten(tree, [*zeros[:i], basis, *zeros[i + 1 :]])

    leaves = [jnp.asarray(leaf) for leaf in leaves]
    return jax.tree.unflatten(tree, [cotangents(i) for i in range(len(leaves))])


def _rows(pullback: VJP, cotangents: Any, leaf: Any, xs: tuple) -> Any:
    """∂leaf/∂x: [*leaf.shape, *x.shape], for each x of xs, weakly typed if x is; zeros of its own dtype for an integer x,
    as in JAX."""

    def unflattened(row, x):
        row = jnp.zeros(row.shape, jnp.result_type(x)) if row.dtype == jax.dtypes.float0 else row
        return _compat.typed_as(jax.typeof(x), row.reshape((*jnp.shape(leaf), *row.shape[1:])))

    return jax.tree.map(unflattened, jax.vmap(pullback)(cotangents), xs)


def _accumulated(ref: Any, x_bar: Any) -> Any:
    """What `with_refs` returns in the place of a cotangent, which it has added to the reference if there is one."""
    if isinstance(ref, _compat.DontWant):
        return _compat.DidntWant()
    if isinstance(ref, _compat.GradValue):
        return x_bar
    if x_bar.dtype != jax.dtypes.float0:
        jax.ref.addupdate(ref, ..., x_bar)
    return _compat.GradRef()


def _select_args(fun: Callable, argnums: int | tuple[int, ...], args: tuple, kwargs: dict) -> tuple[tuple, Callable]:
    """The arguments to differentiate, and the function of them alone."""
    chosen = (argnums,) if isinstance(argnums, int) else argnums
    if chosen and max(chosen) >= len(args):
        raise TypeError(
            f"differentiating with respect to argnums={argnums} requires at least {max(chosen) + 1} positional arguments "
            f"to be passed by the caller, but got only {len(args)} positional arguments. Keyword arguments cannot be "
            "differentiated: pass them by position."
        )
    if chosen and min(chosen) < -len(args):
        raise ValueError(
            f"argnums={argnums} has {min(chosen)}, but with {len(args)} positional arguments the first is {-len(args)}."
        )
    places = [i % len(args) for i in chosen]
    if len(set(places)) < len(places):
        raise TypeError(f"argnums={argnums} names one of the {len(args)} positional arguments twice.")

    def partial(*selected):
        full = list(args)
        for i, x in zip(places, selected, strict=True):
            full[i] = x
        return fun(*full, **kwargs)

    return tuple(args[i] for i in places), partial


def _as_value(x: Any, what: str) -> Any:
    """x as a JAX value; Python and NumPy numbers become arrays, weakly typed where they are."""
    if isinstance(x, jax.Array):
        return x
    try:
        aval = jax.typeof(x)
    except TypeError:
        raise TypeError(
            f"Argument {x!r} of type {type(x)} is not a valid JAX type: {what} is not an array or a number. Close over "
            "what is not an array, or register its class as a pytree."
        ) from None
    if _compat.is_reference(aval):
        raise TypeError(
            f"{what} is a mutable reference, which has no cotangent. Differentiate with respect to what is in it."
        )
    if not isinstance(aval, jax.core.ShapedArray) or aval.dtype == jax.dtypes.float0:
        return x
    return jnp.asarray(x)


def _bar_dtype(aval: Any) -> Any:
    return aval.dtype if is_inexact(aval) else jax.dtypes.float0


def _one_like(y: Any) -> jax.Array:
    """The cotangent 1 of a scalar."""
    sharding = jax.typeof(y).to_ct_aval().sharding
    return jax.lax.full_like(y, 1, sharding=sharding if sharding.mesh.explicit_axes else None)


def _key_paths(tree: Any) -> list[str]:
    return [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_flatten_with_path(tree)[0]]


def _check_callable(name: str, fun: Any) -> None:
    if not callable(fun):
        raise TypeError(f"Expected a callable value, got {fun!r}: fbp.{name} differentiates a function.")


def _check_argnums(argnums: Any) -> int | tuple[int, ...]:
    try:
        checked = operator.index(argnums) if np.ndim(argnums) == 0 else tuple(operator.index(i) for i in argnums)
    except TypeError:
        raise TypeError(f"argnums is an int or a sequence of ints, but got {argnums!r}.") from None
    if checked == ():
        raise ValueError("argnums is an empty sequence: there is nothing to differentiate with respect to.")
    return checked


def _check_inputs(name: str, selected: tuple, argnums: int | tuple[int, ...], holomorphic: bool, allow_int: bool):
    """Every input of a wrong type at once, with its place."""
    places = (argnums,) if isinstance(argnums, int) else argnums
    complex_wanted, inexact_wanted, number_wanted = [], [], []
    for place, arg in zip(places, selected, strict=True):
        for path, leaf in jax.tree_util.tree_flatten_with_path(arg)[0]:
            where = f"argument {place}{jax.tree_util.keystr(path)}"
            aval = jax.typeof(_as_value(leaf, where))
            if not isinstance(aval, jax.core.ShapedArray):
                if not is_inexact(aval):
                    inexact_wanted.append(f"{aval.str_short()} ({where})")
                continue
            dtype = aval.dtype
            got = f"{dtype.name} ({where})"
            if holomorphic and not jnp.issubdtype(dtype, jnp.complexfloating):
                complex_wanted.append(got)
            elif dtype == jax.dtypes.float0:
                number_wanted.append(got)
            elif not allow_int and not jnp.issubdtype(dtype, jnp.inexact):
                inexact_wanted.append(got)
    if complex_wanted:
        got = ", ".join(complex_wanted)
        raise TypeError(f"{name} with holomorphic=True requires inputs with complex dtype, but got {got}.")
    if number_wanted:
        raise TypeError(
            f"{name} requires numerical-valued inputs (input dtype that is a sub-dtype of np.bool_ or np.number), but got "
            f"{', '.join(number_wanted)}."
        )
    if inexact_wanted:
        raise TypeError(
            f"{name} requires real- or complex-valued inputs (input dtype that is a sub-dtype of np.inexact), but got "
            f"{', '.join(inexact_wanted)}. Convert to a floating dtype, leave the argument out of argnums, or pass "
            "allow_int=True to get float0 zeros for it."
        )


def _check_references(refs: tuple, tree: Any, avals: tuple) -> None:
    got = jax.tree.structure(refs)
    if got != tree:
        raise ValueError(
            "unexpected tree structure: with_refs takes the structure of the arguments of the differentiated function, but "
            f"{_tree_differences(tree, got, 'arguments', 'references')}."
        )
    wrong = []
    for key, ref, aval in zip(_key_paths(refs), jax.tree.leaves(refs), avals, strict=True):
        if isinstance(ref, _compat.GradValue | _compat.DontWant) or not is_inexact(aval):
            continue
        got, expected = jax.typeof(ref), aval.to_ct_aval()
        if not _compat.is_reference(got):
            wrong.append(f"{got.str_short()} at {key} is no reference, jax.ad.GradValue() or jax.ad.DontWant()")
        elif (got.shape, got.dtype) != (expected.shape, expected.dtype):
            wrong.append(f"{got.str_short()} at {key} is to take a cotangent of type {expected.str_short()}")
    if wrong:
        raise ValueError(f"unexpected JAX type (e.g. shape/dtype) for gradient ref: {'; '.join(wrong)}.")


def _tree_differences(tree: Any, got: Any, name: str, got_name: str) -> str:
    differences = [
        f"{name}{jax.tree_util.keystr(path)} is a {expected}, the {got_name} a {found}: {why}"
        for path, expected, found, why in _compat.tree_differences(tree, got)
    ]
    return "; ".join(differences) or f"the {name} is {tree}, the {got_name} {got}"


def _check_scalar(y: Any, holomorphic: bool) -> None:
    leaves = jax.tree.leaves(y)
    if len(leaves) != 1 or leaves[0] is not y:
        raise TypeError(
            f"Gradient only defined for scalar-output functions. Output was {y!r}. Return one scalar, with has_aux=True if "
            "there is more to return."
        )
    if jnp.shape(y):
        raise TypeError(
            f"Gradient only defined for scalar-output functions. Output had shape: {jnp.shape(y)}. Reduce it, for example "
            "with jnp.mean, or use fbp.vjp or fbp.jacrev."
        )
    _check_output_dtype("grad", jax.typeof(y), holomorphic)


def _check_output_dtype(name: str, aval: Any, holomorphic: bool) -> None:
    if holomorphic and not jnp.issubdtype(aval.dtype, jnp.complexfloating):
        raise TypeError(f"{name} with holomorphic=True requires outputs with complex dtype, but got {aval.dtype.name}.")
    if not holomorphic and not jnp.issubdtype(aval.dtype, jnp.floating):
        raise TypeError(
            f"{name} requires real-valued outputs (output dtype that is a sub-dtype of np.floating), but got "
            f"{aval.dtype.name}. For a complex output pass holomorphic=True or use fbp.vjp; an integer output has no "
            "gradient."
        )


def _differs(got: Any, expected: Any, has_cotangent: bool) -> bool:
    if not isinstance(expected, jax.core.ShapedArray):
        return got != expected
    if got.shape != expected.shape:
        return True
    varies = not _compat.varying_axes(got) <= _compat.varying_axes(expected)
    return has_cotangent and (got.dtype != expected.dtype or varies)


def _check_cotangent(y_bar: Any, tree: Any, avals: tuple) -> list[Any]:
    """The leaves of a cotangent for outputs of these types; None for a zero: of an integer output, or JAX's own."""
    leaves, got = jax.tree.flatten(y_bar, is_leaf=_compat.is_internal_zero)
    if got != tree:
        raise ValueError(
            "unexpected tree structure: the cotangent of a pullback has the structure of the output of the differentiated "
            f"function, but {_tree_differences(tree, got, 'output', 'cotangent')}."
        )
    wrong = []
    for key, leaf, aval in zip(_key_paths(jax.tree.unflatten(tree, leaves)), leaves, avals, strict=True):
        if _compat.is_internal_zero(leaf):
            continue
        got, expected = jax.typeof(leaf), aval.to_ct_aval()
        if _differs(got, expected, is_inexact(aval)):
            wrong.append(
                f"got {got.str_short()}, but expected {expected.str_short()} because the corresponding output{key} of the "
                f"differentiated function had JAX type {aval.str_short()}"
            )
    if wrong:
        raise ValueError(f"unexpected JAX type (e.g. shape/dtype) for argument to VJP function: {'; '.join(wrong)}.")
    return [
        None if _compat.is_internal_zero(leaf) or not is_inexact(aval) else _as_value(leaf, "the cotangent")
        for leaf, aval in zip(leaves, avals, strict=True)
    ]
