"""The suite runs strictly: warnings are errors (pyproject.toml), dtypes are never promoted silently, and a tracer that outlives
its trace fails the test. And unoptimized: most of its time is XLA's, spent on compiling what runs once. (`scripts/check` and
the experiments run as users do.)"""

import gc
import os
import pathlib

import jax
import pytest

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_disable_most_optimizations", True)
if jax.__version_info__ < (0, 11):  # where XLA has its older code generator, too, which compiles twice as fast
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_cpu_use_fusion_emitters=false"
jax.config.update("jax_num_cpu_devices", 4)  # for shard_map

# The cases of tests/rules look for leaks themselves. Elsewhere the programs are others', or long: JAX keeps no cache meanwhile.
HERE = pathlib.Path(__file__).parent
LEAK_CHECKED = [HERE / name for name in ("nn", "ops", "test_api.py", "test_core.py", "test_engine.py", "test_flax.py")]


@pytest.fixture(autouse=True)
def leak_checks(request):
    """JAX looks for tracers among all objects, after each trace; frozen, those from before the test are not looked at. (For
    what holds a tracer that is left, run the test without.)"""
    if not {request.path, request.path.parent} & {*LEAK_CHECKED}:
        yield
        return
    gc.freeze()
    try:
        with jax.checking_leaks():
            yield
    finally:
        gc.unfreeze()
