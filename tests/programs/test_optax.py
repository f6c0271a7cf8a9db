"""Every loss of optax, and its optimizers differentiated through: the gradient of what is left after three steps."""

import jax
import jax.numpy as jnp
import optax

from tests.programs.agree import Program, check, normal, one_test_each, uniform

LOGITS, TARGETS = normal(4, 5), normal(4, 5, seed=1)
LABELS, SIGNS = jnp.array([0, 3, 2, 4]), jnp.sign(jnp.asarray(normal(4, 5, seed=2)))
PROBABILITIES = uniform(0.1, 0.9, 4, 5) / 5

losses = optax.losses
LOSSES = {
    "cosine_distance": (losses.cosine_distance, LOGITS, TARGETS),
    "cosine_similarity": (losses.cosine_similarity, LOGITS, TARGETS),
    "ctc_loss": (
        lambda x: losses.ctc_loss(x, jnp.zeros((2, 6)), jnp.array([[1, 2, 3], [2, 2, 0]]), jnp.array([[0, 0, 0], [0, 0, 1.0]])),
        normal(2, 6, 5),
    ),
    "generalized_kl_divergence": (losses.generalized_kl_divergence, jnp.log(PROBABILITIES), PROBABILITIES[::-1]),
    "hinge_loss": (lambda x: losses.hinge_loss(x, SIGNS), LOGITS),
    "huber_loss": (losses.huber_loss, LOGITS, TARGETS),
    "kl_divergence": (losses.kl_divergence, jnp.log(PROBABILITIES), PROBABILITIES[::-1]),
    "kl_divergence_with_log_targets": (
        losses.kl_divergence_with_log_targets, jnp.log(PROBABILITIES), jnp.log(PROBABILITIES[::-1]),
    ),
    "l2_loss": (losses.l2_loss, LOGITS, TARGETS),
    "log_cosh": (losses.log_cosh, LOGITS, TARGETS),
    "multiclass_hinge_loss": (lambda x: losses.multiclass_hinge_loss(x, LABELS), LOGITS),
    "multiclass_perceptron_loss": (lambda x: losses.multiclass_perceptron_loss(x, LABELS), LOGITS),
    "ntxent": (lambda x: losses.ntxent(x, jnp.array([0, 0, 1, 1])), LOGITS),
    "perceptron_loss": (lambda x: losses.perceptron_loss(x, SIGNS), LOGITS),
    "poly_loss_cross_entropy": (losses.poly_loss_cross_entropy, LOGITS, PROBABILITIES),
    "ranking_softmax_loss": (losses.ranking_softmax_loss, LOGITS, PROBABILITIES),
    "safe_softmax_cross_entropy": (losses.safe_softmax_cross_entropy, LOGITS, PROBABILITIES),
    "sigmoid_binary_cross_entropy": (losses.sigmoid_binary_cross_entropy, LOGITS, PROBABILITIES),
    "sigmoid_focal_loss": (losses.sigmoid_focal_loss, LOGITS, PROBABILITIES),
    "smooth_labels": (lambda x: losses.smooth_labels(x, 0.1), PROBABILITIES),
    "softmax_cross_entropy": (losses.softmax_cross_entropy, LOGITS, PROBABILITIES),
    "softmax_cross_entropy_with_integer_labels": (
        lambda x: losses.softmax_cross_entropy_with_integer_labels(x, LABELS), LOGITS,
    ),
    "sparsemax_loss": (lambda x: losses.sparsemax_loss(x[:, 0], (LABELS % 2).astype(x.dtype)), LOGITS),
    "squared_error": (losses.squared_error, LOGITS, TARGETS),
    "triplet_margin_loss": (losses.triplet_margin_loss, LOGITS, TARGETS, TARGETS[::-1]),
}  # fmt: skip

OPTIMIZERS = {
    name: getattr(optax, name)
    for name in [
        "adabelief", "adadelta", "adagrad", "adam", "adamax", "adamw", "amsgrad", "fromage", "lamb", "lars", "lion",
        "nadam", "novograd", "optimistic_gradient_descent", "radam", "rmsprop", "rprop", "sgd", "sm3", "yogi",
    ]
    if hasattr(optax, name)
}  # fmt: skip


def after_three_steps(make):
    """What is left of the loss, as a function of the learning rate, of where it began, and of the data."""

    def fun(rate, w, x):
        optimizer = make(learning_rate=rate)
        loss = lambda w: jnp.mean(jnp.tanh(x @ w) ** 2)
        state = optimizer.init(w)
        for _ in range(3):
            updates, state = optimizer.update(jax.grad(loss)(w), state, w)
            w = optax.apply_updates(w, updates)
        return loss(w)

    return fun


PROGRAMS = [Program(name, fun, args) for name, (fun, *args) in LOSSES.items()] + [
    Program(f"three steps of {name}", after_three_steps(make), (jnp.float32(0.1), normal(3, 2), normal(5, 3)))
    for name, make in OPTIMIZERS.items()
]


@one_test_each(PROGRAMS)
def test_agrees_with_jax_grad(program):
    check(program)
