"""The suite runs strictly: warnings are errors (pyproject.toml), dtypes are never promoted silently. And unoptimized: most of
its time is XLA's, spent on compiling what runs once. (`scripts/check` and the experiments run as users do.)"""

import jax
import pytest

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_disable_most_optimizations", True)
jax.config.update("jax_num_cpu_devices", 4)  # for shard_map


@pytest.fixture
def leak_checks():
    """Fails the test if a tracer outlives its trace. It also switches off JAX's caches, so only some tests ask for it."""
    with jax.checking_leaks():
        yield
