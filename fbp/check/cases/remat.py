"""Cases for `fbp.rules.remat`."""

import jax
import jax.numpy as jnp
from jax import checkpoint_policies as policies
from jax import lax
from jax.ad_checkpoint import checkpoint_name

from fbp.check.case import Case, normal

XY = (normal(3, 3), normal(3, 3))


def layer(x, y):
    return jnp.tanh(x) * y, x * x


def block(x, y):
    hidden = checkpoint_name(jax.nn.softplus(x @ y), "hidden")
    return checkpoint_name(jnp.tanh(hidden @ y), "output") * x


def under(policy):
    return jax.checkpoint(block, policy=policy)


offload = policies.save_and_offload_only_these_names(
    names_which_can_be_saved=["hidden"],
    names_which_can_be_offloaded=["output"],
    offload_src="device",
    offload_dst="pinned_host",
)

CASES = [
    Case("remat", jax.checkpoint(layer), XY),
    Case("remat/in jit", jax.jit(lambda x, y: jax.checkpoint(layer)(x * y, y)), XY),
    Case("remat/allow cse", jax.checkpoint(layer, prevent_cse=False), XY),
    Case("remat/nested", jax.checkpoint(lambda x, y: jax.checkpoint(block)(jnp.sin(x), y)), XY),
    Case("remat/everything", under(policies.everything_saveable), XY),
    Case("remat/nothing", under(policies.nothing_saveable), XY),
    Case("remat/dots", under(policies.dots_saveable), XY),
    Case("remat/dots without batch", under(policies.dots_with_no_batch_dims_saveable), XY),
    Case("remat/names", under(policies.save_only_these_names("hidden")), XY),
    Case("remat/offload", under(offload), XY, second=False),  # JAX's own second derivative fails
    Case(
        "remat/of scan",
        jax.checkpoint(lambda x, y: lax.scan(lambda h, v: (jnp.tanh(h * v), h), x, y), policy=policies.dots_saveable),
        XY,
    ),
    Case("optimization_barrier", lambda x, y: lax.optimization_barrier((x * y, x))[0] * x, XY),
]
