"""Flax as the reference: the same parameters give the same outputs and the same gradients."""

import flax.linen as linen
import jax
import jax.numpy as jnp
import numpy as np

import fbp
from fbp.check.compare import relative_error

TOLERANCE = {"float64": 1e-10, "float32": 1e-5}
FLAX_PROMOTION = "standard"  # Flax promotes dtypes silently; our layers never do


def assert_same_as_flax(layer, module, *xs, to_fbp=lambda params: params, train=None, mask=None):
    """Output and gradients, with respect to parameters and inputs, of an fbp layer and a Flax module, jitted, in float64
    and float32. `to_fbp` relabels Flax's parameters as ours; it is applied to their gradient too. `module` may be a function
    of the dtype, for modules that must be told."""
    for dtype in TOLERANCE:
        with jax.enable_x64(dtype == "float64"):
            flax = module if isinstance(module, linen.Module) else module(dtype)
            _compare(layer, flax, [_cast(x, dtype) for x in xs], to_fbp, train, mask, dtype)


def _compare(layer, module, xs, to_fbp, train, mask, dtype):
    options = {} if mask is None else {"mask": mask}
    with jax.numpy_dtype_promotion(FLAX_PROMOTION):
        variables = dict(jax.jit(lambda: module.init(jax.random.key(0), *xs, **options))())
    rng = np.random.default_rng(0)
    uniform = lambda low, high: lambda p: jnp.asarray(rng.uniform(low, high, p.shape), dtype)
    params = jax.tree.map(uniform(-0.7, 0.7), variables.pop("params", {}))
    stats = jax.tree.map(uniform(0.5, 1.5), variables)

    ours_init, state = jax.jit(lambda: layer.init(jax.random.key(0), *xs))()
    types = lambda tree: jax.tree.map(lambda x: (x.shape, str(x.dtype)), tree)
    single = lambda tree: jax.tree.map(lambda x: x.astype(jnp.float32), tree)
    assert types(single(to_fbp(params))) == types(ours_init)
    state = stats.get("batch_stats", state)
    wanted = [i for i, x in enumerate(xs) if jnp.issubdtype(x.dtype, jnp.floating)]

    def flax(params, *chosen):
        full = [chosen[wanted.index(i)] if i in wanted else x for i, x in enumerate(xs)]
        if train is None:
            return module.apply({"params": params, **stats}, *full, **options), state
        flags = {"use_running_average": not train}
        y, new = module.apply({"params": params, **stats}, *full, **flags, mutable=["batch_stats"])
        return y, new.get("batch_stats", state)

    def ours(params, *chosen):
        full = [chosen[wanted.index(i)] if i in wanted else x for i, x in enumerate(xs)]
        return layer.apply(params, state, *full, train=bool(train), **options)

    chosen = [xs[i] for i in wanted]
    with jax.numpy_dtype_promotion(FLAX_PROMOTION):
        y = jax.eval_shape(flax, params, *chosen)[0]
    weights = jax.tree.map(lambda y: jnp.asarray(rng.standard_normal(y.shape), y.dtype), y)

    def loss(fun):
        def scalar(*args):
            y, new_state = fun(*args)
            terms = jax.tree.map(lambda a, w: jnp.sum(a * w).astype(dtype), y, weights)
            return sum(jax.tree.leaves(terms), start=jnp.zeros((), dtype)), (y, new_state)

        return scalar

    argnums = tuple(range(1 + len(chosen)))
    with jax.numpy_dtype_promotion(FLAX_PROMOTION):
        theirs, (y, new) = jax.jit(jax.grad(loss(flax), argnums, has_aux=True))(params, *chosen)
    theirs = to_fbp(theirs[0]), *theirs[1:]
    grads, (our_y, our_new) = jax.jit(fbp.grad(loss(ours), argnums, has_aux=True))(to_fbp(params), *chosen)
    for what, a, b in ("output", our_y, y), ("state", our_new, new), ("gradient", grads, theirs):
        assert types(a) == types(b), what
        scale = max([1e-30, *(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(b) if leaf.size)])
        for (path, leaf), other in zip(jax.tree.leaves_with_path(a), jax.tree.leaves(b), strict=True):
            error = relative_error(leaf, other, scale)
            assert error < TOLERANCE[dtype], (what, jax.tree_util.keystr(path), dtype, error)


def _cast(x, dtype):
    x = np.asarray(x)
    return jnp.asarray(x, dtype if np.issubdtype(x.dtype, np.floating) else jnp.int32)


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)
