"""fbp's transformations mean what JAX's mean."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fbp


def assert_same(ours, theirs):
    """Equal structure, type (weak or not) and value: to a few ULPs of the largest element."""
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        assert jax.typeof(a) == jax.typeof(b)
        if jax.typeof(b).dtype != jax.dtypes.float0:
            largest = np.abs(b).max(initial=0.0)
            np.testing.assert_allclose(
                a, b, rtol=2e-6, atol=4 * np.finfo(b.dtype).eps * largest if largest.dtype.kind == "f" else 0
            )


def loss(params, x, scale=1.0):
    h = jnp.tanh(x @ params["w"] + params["b"])
    return scale * jnp.sum(h * h)


PARAMS = {"w": jnp.linspace(-1, 1, 6).reshape(2, 3), "b": jnp.linspace(0, 1, 3), "none": None}
X = jnp.linspace(-2, 2, 8).reshape(4, 2)


@pytest.mark.parametrize("argnums", [0, 1, (0, 1), (1, 0), [1], -1, (0, 2)])
@pytest.mark.parametrize("name", ["grad", "value_and_grad", "jacrev"])
def test_argnums(name, argnums):
    ours, theirs = (getattr(m, name)(loss, argnums) for m in (fbp, jax))
    assert_same(ours(PARAMS, X, 2.0), theirs(PARAMS, X, 2.0))
    assert_same(jax.jit(ours)(PARAMS, X, 2.0), jax.jit(theirs)(PARAMS, X, 2.0))


@pytest.mark.parametrize("name", ["grad", "value_and_grad", "jacrev", "hessian"])
def test_aux_and_keyword_arguments(name):
    def fun(x, *, power):
        y = jnp.sum(x**power)
        return y, {"y": y, "n": 3, "x": x}

    ours, theirs = (getattr(m, name)(fun, has_aux=True) for m in (fbp, jax))
    assert_same(ours(X, power=3), theirs(X, power=3))


def test_python_numpy_and_weakly_typed_inputs():
    for x in 2.0, np.float32(2), np.float64(2), jnp.float32(2), jnp.asarray(2.0), np.arange(3.0):
        assert_same(fbp.grad(lambda x: jnp.sum(x * x))(x), jax.grad(lambda x: jnp.sum(x * x))(x))
        y, pullback = fbp.vjp(lambda x: x * 2.5, x)
        y_, pullback_ = jax.vjp(lambda x: x * 2.5, x)
        assert_same((y, pullback(y)), (y_, pullback_(y_)))


def test_integers_have_float0_cotangents():
    fun = lambda n, x: jnp.sum(x * n)
    assert_same(fbp.grad(fun, (0, 1), allow_int=True)(3, X), jax.grad(fun, (0, 1), allow_int=True)(3, X))
    _, pullback = fbp.vjp(lambda n, x: (n + 1, x * x), 3, 2.0)
    _, pullback_ = jax.vjp(lambda n, x: (n + 1, x * x), 3, 2.0)
    bar = np.zeros((), jax.dtypes.float0), 1.0
    assert_same(pullback(bar), pullback_(bar))


def test_what_is_not_differentiated_comes_as_it_was_given():
    total = lambda x, n, flag: sum(x * i for i in range(n)) if flag else jnp.sum(x[:n])
    for flag in True, False:
        ours, theirs = (jax.jit(lambda x, m=m, flag=flag: m.vjp(total, x, 2, flag)[1](1.0)[0]) for m in (fbp, jax))
        x = jnp.float32(3) if flag else jnp.arange(3.0)
        assert_same(ours(x), theirs(x))


def test_complex_conventions():
    z = jnp.array([1 + 2j, -0.5j, 3.0])
    holomorphic = lambda z: jnp.sum(z * z * jnp.exp(z))
    assert_same(fbp.grad(holomorphic, holomorphic=True)(z), jax.grad(holomorphic, holomorphic=True)(z))
    real = lambda z: jnp.sum(jnp.abs(z) ** 2 + jnp.real(z) * jnp.imag(jnp.conj(z)))
    assert_same(fbp.grad(real)(z), jax.grad(real)(z))


def test_jacobian_and_hessian_of_pytrees():
    def fun(tree, y):
        return {"a": jnp.outer(tree["u"], y), "b": (jnp.sum(tree["u"]) * tree["v"],)}

    tree, y = {"u": jnp.arange(2.0), "v": jnp.float32(3)}, jnp.arange(3.0)
    assert_same(fbp.jacrev(fun)(tree, y), jax.jacrev(fun)(tree, y))
    assert_same(fbp.jacrev(fun, (0, 1))(tree, y), jax.jacrev(fun, (0, 1))(tree, y))
    cube = lambda tree: jnp.sum(tree["u"] ** 3) * tree["v"] ** 2
    assert_same(fbp.hessian(cube)(tree), jax.hessian(cube)(tree))


def test_jacobians_are_weakly_typed_as_the_input_is():
    for fun, x in (jnp.sin, 1.0), (jnp.sin, jnp.float32(1)), (jnp.sin, jnp.broadcast_to(1.0, 3)), (jnp.abs, 1 + 2j):
        assert_same(fbp.jacrev(fun)(x), jax.jacrev(fun)(x))
    assert_same(fbp.hessian(jnp.sin)(1.0), jax.hessian(jnp.sin)(1.0))
    integers = lambda m: m.jacrev(lambda x, n: x * n, (0, 1), allow_int=True)(2.0, 3)
    assert_same(integers(fbp), integers(jax))


def test_transformations_compose():
    fun = lambda x: jnp.sum(jnp.tanh(x) * x**3)
    x = jnp.linspace(-1, 1, 3)
    assert_same(jax.vmap(fbp.grad(fun))(X), jax.vmap(jax.grad(fun))(X))
    assert_same(fbp.grad(lambda x: jnp.sum(jax.vmap(fun)(x)))(X), jax.grad(lambda x: jnp.sum(jax.vmap(fun)(x)))(X))
    assert_same(jax.jvp(fbp.grad(fun), (x,), (x,)), jax.jvp(jax.grad(fun), (x,), (x,)))
    assert_same(jax.linearize(fbp.grad(fun), x)[1](x), jax.linearize(jax.grad(fun), x)[1](x))

    def nth(grad, n):
        f = lambda x: jnp.tanh(x) * x
        for _ in range(n):
            f = grad(f)
        return f

    for n in range(1, 4):
        np.testing.assert_allclose(nth(fbp.grad, n)(0.3), nth(jax.grad, n)(0.3), rtol=2e-5)
    np.testing.assert_allclose(jax.grad(nth(fbp.grad, 2))(0.3), nth(jax.grad, 3)(0.3), rtol=2e-5)
    np.testing.assert_allclose(fbp.grad(nth(jax.grad, 2))(0.3), nth(jax.grad, 3)(0.3), rtol=2e-5)


def test_shapes_lowering_and_donation():
    grad = fbp.grad(loss)
    assert jax.eval_shape(grad, PARAMS, X) == jax.eval_shape(jax.grad(loss), PARAMS, X)
    compiled = jax.jit(grad).lower(PARAMS, X).compile()
    assert_same(compiled(PARAMS, X), jax.grad(loss)(PARAMS, X))
    params = jax.tree.map(jnp.copy, PARAMS)
    step = jax.jit(lambda p, x: jax.tree.map(lambda p, g: p - 0.1 * g, p, fbp.grad(loss)(p, x)), donate_argnums=0)
    step(params, X)
    assert params["w"].is_deleted()


def test_the_pullback_is_a_pytree_that_leaves_a_jit():
    y, pullback = jax.jit(functools.partial(fbp.vjp, loss))(PARAMS, X)
    assert_same(pullback(y), jax.vjp(loss, PARAMS, X)[1](y))
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(pullback))
    assert_same(jax.jit(lambda pullback, y: pullback(y))(pullback, y), jax.vjp(loss, PARAMS, X)[1](y))


def test_control_flow_on_values_outside_jit():
    def fun(x):
        while x < 10:
            x = x * x if x > 1.5 else x + 1
        return x

    assert_same(fbp.grad(fun)(2.0), jax.grad(fun)(2.0))
    with pytest.raises(jax.errors.TracerBoolConversionError):
        jax.jit(fbp.grad(fun))(2.0)


def test_effects_happen_once_and_in_order(capsys):
    def fun(x):
        jax.debug.print("one {}", x, ordered=True)
        y = x * x
        jax.debug.print("two {}", y, ordered=True)
        return y

    fbp.grad(fun)(3.0)
    jax.jit(fbp.grad(fun))(3.0).block_until_ready()
    jax.effects_barrier()
    assert capsys.readouterr().out.split("\n")[:-1] == ["one 3.0", "two 9.0"] * 2


def test_random_keys_flow_through():
    fun = lambda x, key: jnp.sum(x * jax.random.normal(key, x.shape))
    assert_same(fbp.grad(fun)(X, jax.random.key(0)), jax.grad(fun)(X, jax.random.key(0)))


def test_names_and_documents_of_the_wrapped_function():
    assert fbp.grad(loss).__name__ == "loss"
    assert fbp.grad(loss, (0, 1)).__doc__.startswith(
        "The gradient of loss with respect to positional argument(s) (0, 1)."
    )
    assert "Jacobian of " in fbp.jacrev(functools.partial(loss, scale=2.0)).__doc__


ERRORS = [
    (
        lambda m: m.grad(lambda x: x)(X),
        TypeError,
        "Gradient only defined for scalar-output functions. Output had shape",
    ),
    (
        lambda m: m.grad(lambda x: (x, x))(1.0),
        TypeError,
        "Gradient only defined for scalar-output functions. Output was",
    ),
    (lambda m: m.grad(lambda x: "a")(1.0), TypeError, "is not a valid JAX type"),
    (lambda m: m.grad(lambda x: x)(3), TypeError, "grad requires real- or complex-valued inputs .* got int32"),
    (lambda m: m.grad(lambda x: 3)(3.0), TypeError, "grad requires real-valued outputs .* got int32"),
    (
        lambda m: m.grad(lambda x: x * 1j)(3.0),
        TypeError,
        "grad requires real-valued outputs .* got complex64.*holomorphic",
    ),
    (
        lambda m: m.grad(lambda x: x, holomorphic=True)(3.0),
        TypeError,
        "requires inputs with complex dtype, but got float32",
    ),
    (lambda m: m.grad(lambda x: x.real, holomorphic=True)(3j), TypeError, "requires outputs with complex dtype"),
    (lambda m: m.grad(lambda x: x, argnums=1)(3.0), TypeError, "argnums=1 requires at least 2 positional arguments"),
    (lambda m: m.grad(lambda x, y: x, argnums=-3)(3.0, 2.0), ValueError, "-3"),
    (lambda m: m.grad(lambda x: x, argnums="0")(3.0), TypeError, ""),
    (lambda m: m.grad(lambda x: x, argnums=())(3.0), ValueError, "empty"),
    (lambda m: m.grad(lambda x, y: x * y, argnums=(0, -2))(3.0, 2.0), TypeError, ""),
    (lambda m: m.grad(3.0), TypeError, "Expected a callable value, got 3.0"),
    (lambda m: m.grad(lambda x: x)("a"), TypeError, "Argument 'a' of type <class 'str'> is not a valid JAX type"),
    (lambda m: m.grad(lambda x: 1.0, allow_int=True)(FLOAT0), TypeError, "numerical-valued inputs .* got void"),
    (lambda m: m.jacrev(lambda x: x)(3), TypeError, "jacrev requires real- or complex-valued inputs .* got int32"),
    (lambda m: m.vjp(lambda x: x, X)[1](jnp.ones(3)), ValueError, r"got float32\[3\], but expected float32\[4,2\]"),
    (lambda m: m.vjp(lambda x: x, X)[1](X.astype(jnp.float16)), ValueError, "unexpected JAX type .* got float16"),
    (lambda m: m.vjp(lambda x: (x, x), X)[1](X), ValueError, "unexpected tree structure"),
    (lambda m: m.vjp(lambda x: {"a": x}, X)[1]({"b": X}), ValueError, "unexpected tree structure"),
    (lambda m: m.vjp(lambda x: (x, x), X)[1](X, X), TypeError, "applied to <lambda> was called with 2 arguments"),
    (
        lambda m: m.vjp(lambda x: x, X, has_aux=True),
        TypeError,
        "expected function with aux output to return a two-element",
    ),
    (lambda m: m.vjp(lambda x, y: x, X, X)[1].with_refs(jax.new_ref(X)), Exception, ""),
]
FLOAT0 = np.zeros(3, jax.dtypes.float0)


@pytest.mark.parametrize("call, error, words", ERRORS)
def test_errors_are_those_of_jax_in_type_and_words(call, error, words):
    for m in jax, fbp:
        with pytest.raises(error, match=f"(?s){words}"):
            call(m)


def test_every_mismatch_is_named_at_once():
    with pytest.raises(TypeError, match=r"int32 \(argument 0\['a'\]\), bool \(argument 0\['b'\]\[1\]\)"):
        fbp.grad(lambda t: 0.0)({"a": 1, "b": [1.0, True]})
    with pytest.raises(ValueError, match=r"got float32\[2\].* output\[0\] of .*; got float32\[3\].* output\[1\]"):
        fbp.vjp(lambda x: (x, x), X)[1]((jnp.ones(2), jnp.ones(3)))
    with pytest.raises(ValueError, match=r"output\[0\] is a .*tuple.*; output\[1\] is a .*leaf"):
        fbp.vjp(lambda x: ((x, x), x), X)[1]((X, (X, X)))
    with pytest.raises(ValueError, match=r"float32\[3\].* at \[0\].*; .*float32\[4,2\] at \[1\] is no reference"):
        fbp.vjp(lambda x, y: x, X, X)[1].with_refs(jax.new_ref(jnp.ones(3)), X)


def test_cotangents_that_jax_takes():
    fun = lambda x: (jnp.sum(x), 3, x)
    for bar in ((1.0, np.zeros((), jax.dtypes.float0), X), (np.float32(1), 7, X), (1.0, np.int32(7), np.asarray(X))):
        assert_same(fbp.vjp(fun, X)[1](bar), jax.vjp(fun, X)[1](bar))


def test_argnums_and_aux_as_jax_takes_them():
    fun = lambda x, y: [jnp.sum(x * x * y), x]
    for argnums in np.array([0, 1]), np.int64(1), range(2):
        assert_same(*(m.grad(fun, argnums, has_aux=True)(X, X) for m in (fbp, jax)))


def test_integer_inputs_of_a_jacobian():
    fun = lambda x, n: x * n.astype(x.dtype)
    assert_same(*(m.jacrev(fun, (0, 1), allow_int=True)(X[0], jnp.array([2, 3])) for m in (fbp, jax)))


def test_cotangents_added_to_references():
    fun = lambda x, tree: jnp.sum(x * x * tree["a"] * tree["b"])
    results = []
    for m in jax, fbp:
        _, pullback = m.vjp(fun, X, {"a": 2.0 * X, "b": X, "n": 3})
        total = jax.new_ref(jnp.ones_like(X))
        wants = {"a": jax.ad.GradValue(), "b": jax.ad.DontWant(), "n": jax.ad.GradValue()}
        bars = pullback.with_refs(total, wants)(1.0)
        assert isinstance(bars[0], jax.ad.GradRef) and isinstance(bars[1]["b"], jax.ad.DidntWant)
        results.append((bars[1]["a"], bars[1]["n"], total[...]))
    assert_same(*results)


PARTS = jax.sharding.PartitionSpec


def _in_another_mesh(x):
    explicit = jax.sharding.get_abstract_mesh()
    automatic = explicit.update_axis_types(dict.fromkeys(explicit.axis_names, jax.sharding.AxisType.Auto))
    with jax.sharding.use_abstract_mesh(automatic):
        y = jnp.sin(jax.sharding.reshard(x, PARTS(None, None)))
        y = y @ y.T
    return jax.sharding.reshard(y, PARTS("i", None))


SHARDED = {
    "relu": jax.nn.relu,
    "replicated factor": lambda x: x @ jnp.ones((2, 3)),
    "column": lambda x: x[:, 0],
    "divided contraction": lambda x: jnp.einsum("ij,ik->jk", x, x, out_sharding=PARTS(None, None)),
    "in a scan": lambda x: jax.lax.scan(
        lambda h, _: (jnp.einsum("ij,jk->ik", jnp.einsum("ij,kj->ik", h, x, out_sharding=PARTS("i", None)), x), None),
        x,
        None,
        length=2,
    )[0],
    "gather": lambda x: x.at[jnp.array([0, 3, 3])].get(out_sharding=PARTS(None, None)),
    "scatter": lambda x: jax.vmap(lambda x, i: x.at[i].set(2 * x[1 - i]))(
        x, jnp.arange(8, out_sharding=PARTS("i")) % 2
    ),
    "dynamic update": lambda x: jax.lax.dynamic_update_slice(x, jnp.sin(x[:4]), (2, 0)),
    "max pooling": lambda x: jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 2), (1, 1), "SAME"),
    "convolution": lambda x: jax.lax.conv_general_dilated(
        x[:, :, None], jnp.ones((2, 1, 3)), (1,), "SAME", dimension_numbers=("NWC", "WIO", "NWC")
    ),
    "auto_axes": jax.sharding.auto_axes(lambda x: jnp.sin(x) @ jnp.cos(x).T, out_sharding=PARTS("i", None)),
    "another mesh": _in_another_mesh,
}


@pytest.mark.parametrize("fun", SHARDED.values(), ids=SHARDED)
def test_a_cotangent_is_sharded_as_its_primal(fun):
    mesh = jax.make_mesh((4,), ("i",), axis_types=(jax.sharding.AxisType.Explicit,))
    with jax.set_mesh(mesh):
        x = jax.device_put(jnp.arange(16.0).reshape(8, 2) / 8, PARTS("i", None))
        loss = lambda x: jnp.sum(fun(x) ** 2)
        for gradient in (fbp.grad(loss)(x), jax.jit(fbp.grad(loss))(x)):
            expected = jax.grad(loss)(x)
            assert gradient.sharding == expected.sharding
            np.testing.assert_allclose(gradient, expected, rtol=1e-5, atol=1e-6)


def test_the_cotangent_of_a_parameter_that_is_reduced_is_unreduced():
    mesh = jax.make_mesh((4,), ("i",), axis_types=(jax.sharding.AxisType.Explicit,))
    with jax.set_mesh(mesh):
        w = jax.device_put(jnp.ones((2, 3)), PARTS(None, None, reduced={"i"}))
        x = jax.device_put(jnp.arange(16.0).reshape(8, 2), PARTS("i", None))
        loss = lambda w: jnp.sum(jnp.sin(x @ w))
        gradient, expected = jax.jit(fbp.grad(loss))(w), jax.jit(jax.grad(loss))(w)
        assert gradient.sharding == expected.sharding
        np.testing.assert_allclose(*(jax.sharding.reshard(g, PARTS()) for g in (gradient, expected)), rtol=1e-5)


def test_rules_that_are_no_rulebook_are_refused():
    with pytest.raises(
        TypeError, match=r"rules must be a rulebook, but got dict\. Write rules=fbp\.RULES \| \{\.\.\.\}"
    ):
        fbp.grad(jnp.sin, rules={jax.lax.sin_p: fbp.RULES[jax.lax.sin_p]})(1.0)
