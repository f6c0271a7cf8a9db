"""NumPyro: the log density of every distribution, with respect to its parameters and the value; and of a whole model."""

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from numpyro.infer.util import log_density

from tests.programs.agree import Program, check, normal, one_test_each, uniform

X, X1, POSITIVE, UNIT = normal(3), normal(3, seed=1), uniform(0.5, 2, 3), uniform(0.1, 0.9, 3)
COUNTS = jnp.array([0, 2, 3])
SIMPLEX = uniform(0.1, 1, 3) / uniform(0.1, 1, 3).sum()
LOWER = jnp.eye(3) + 0.3 * jnp.tril(jnp.ones((3, 3)))

# name: (parameters, value). What is discrete is closed over as it is.
DENSITIES = {
    "AsymmetricLaplace": ((X, POSITIVE, POSITIVE), X1),
    "Bernoulli": ((UNIT,), jnp.array([0, 1, 1])),
    "BernoulliLogits": ((X,), jnp.array([0, 1, 1])),
    "Beta": ((POSITIVE, POSITIVE[::-1]), UNIT),
    "BetaBinomial": ((POSITIVE, POSITIVE[::-1], 5), COUNTS),
    "BetaProportion": ((UNIT, POSITIVE), UNIT[::-1]),
    "Binomial": ((5, UNIT), COUNTS),
    "BinomialLogits": ((X, 5), COUNTS),
    "Categorical": ((SIMPLEX,), jnp.array(1)),
    "CategoricalLogits": ((X,), jnp.array(1)),
    "Cauchy": ((X, POSITIVE), X1),
    "Chi2": ((POSITIVE,), POSITIVE[::-1]),
    "Dirichlet": ((POSITIVE,), SIMPLEX),
    "DirichletMultinomial": ((POSITIVE, 5), COUNTS),
    "Exponential": ((POSITIVE,), POSITIVE[::-1]),
    "Gamma": ((POSITIVE, POSITIVE[::-1]), POSITIVE),
    "GammaPoisson": ((POSITIVE, POSITIVE[::-1]), COUNTS),
    "GaussianRandomWalk": ((POSITIVE[0], 3), X),
    "Geometric": ((UNIT,), COUNTS),
    "GeometricLogits": ((X,), COUNTS),
    "Gompertz": ((POSITIVE, POSITIVE[::-1]), POSITIVE),
    "Gumbel": ((X, POSITIVE), X1),
    "HalfCauchy": ((POSITIVE,), POSITIVE[::-1]),
    "HalfNormal": ((POSITIVE,), POSITIVE[::-1]),
    "InverseGamma": ((POSITIVE, POSITIVE[::-1]), POSITIVE),
    "Kumaraswamy": ((POSITIVE, POSITIVE[::-1]), UNIT),
    "Laplace": ((X, POSITIVE), X1),
    "LogNormal": ((X, POSITIVE), POSITIVE),
    "Logistic": ((X, POSITIVE), X1),
    "LogUniform": ((POSITIVE / 9, POSITIVE * 9), POSITIVE[::-1]),
    "LowRankMultivariateNormal": ((X, normal(3, 2), POSITIVE), X1),
    "Multinomial": ((5, SIMPLEX), COUNTS),
    "MultivariateNormal": ((X, LOWER @ LOWER.T), X1),
    "MultivariateStudentT": ((POSITIVE[0] + 3, X, LOWER), X1),
    "NegativeBinomial2": ((POSITIVE, POSITIVE[::-1]), COUNTS),
    "Normal": ((X, POSITIVE), X1),
    "Pareto": ((POSITIVE / 9, POSITIVE), POSITIVE),
    "Poisson": ((POSITIVE,), COUNTS),
    "ProjectedNormal": ((X,), X1 / jnp.linalg.norm(X1)),
    "RelaxedBernoulliLogits": ((POSITIVE, X), UNIT),
    "SoftLaplace": ((X, POSITIVE), X1),
    "StudentT": ((POSITIVE, X, POSITIVE), X1),
    "VonMises": ((X, POSITIVE), X1 / 4),
    "Weibull": ((POSITIVE, POSITIVE[::-1]), POSITIVE),
    "Wishart": ((POSITIVE[0] + 4, LOWER @ LOWER.T), LOWER @ LOWER.T + jnp.eye(3)),
    "ZeroInflatedPoisson": ((UNIT, POSITIVE), COUNTS),
}  # fmt: skip


def density(name):
    params, value = DENSITIES[name]
    static = {i: x for i, x in enumerate(params) if isinstance(x, int)}

    def log_prob(value, *given):
        given = iter(given)
        make = getattr(dist, name)
        keywords = {
            "DirichletMultinomial": "total_count",
            "GaussianRandomWalk": "num_steps",
            "BinomialLogits": "total_count",
        }
        if name in keywords:
            return make(*given, **{keywords[name]: next(iter(static.values()))}).log_prob(value)
        return make(*(static[i] if i in static else next(given) for i in range(len(params)))).log_prob(value)

    return Program(name, log_prob, (value, *(x for x in params if not isinstance(x, int))))


def transformed(x, loc, scale):
    chain = [dist.transforms.AffineTransform(loc, scale), dist.transforms.SigmoidTransform()]
    return dist.TransformedDistribution(dist.Normal(0.0, 1.0), chain).log_prob(x)


def regression(y=None, x=None):
    """Eight schools' cousin: a hierarchical regression with a correlated prior and a mixture likelihood."""
    tau = numpyro.sample("tau", dist.HalfCauchy(1.0))
    factor = numpyro.sample("factor", dist.LKJCholesky(2, 1.5))
    w = numpyro.sample("w", dist.MultivariateNormal(jnp.zeros(2), scale_tril=tau * factor))
    weights = numpyro.sample("weights", dist.Dirichlet(jnp.ones(2)))
    with numpyro.plate("data", 6):
        parts = [dist.Normal(x @ w, 1.0), dist.StudentT(3.0, x @ w, 2.0)]
        numpyro.sample("y", dist.MixtureGeneral(dist.Categorical(probs=weights), parts), obs=y)


def posterior(params, x, y):
    return log_density(regression, (y, x), {}, params)[0]


SITES = {
    "tau": jnp.float32(0.7),
    "factor": jnp.array([[1.0, 0.0], [0.6, 0.8]]),
    "w": normal(2),
    "weights": jnp.array([0.3, 0.7]),
}

PROGRAMS = [
    *map(density, DENSITIES),
    Program("a transformed distribution", transformed, (UNIT, X, POSITIVE)),
    Program(
        "a truncated distribution",
        lambda x, loc, scale: dist.TruncatedNormal(loc, scale, low=-2.0, high=3.0).log_prob(x),
        (X / 2, X1, POSITIVE),
    ),
    Program(
        "a mixture",
        lambda x, w, loc: dist.MixtureSameFamily(dist.Categorical(probs=w), dist.Normal(loc, 1.0)).log_prob(x),
        (normal(), SIMPLEX, X),
    ),
    Program("a model's posterior", posterior, (SITES, normal(6, 2), normal(6))),
    Program(
        "samples by reparameterization",
        lambda a, b: dist.Gamma(a, b).rsample(jax.random.key(0), (2,)),
        (POSITIVE, POSITIVE[::-1]),
    ),
]


@one_test_each(PROGRAMS)
def test_agrees_with_jax_grad(program):
    check(program)
