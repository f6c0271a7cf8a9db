"""How a person looks at a backward pass: tables and figures."""

from fbp.report.figures import (
    attention_maps,
    coloured_words,
    confusion_matrix,
    gradient_flow,
    image_page,
    learning_curve,
    parameter_names,
)
from fbp.report.tables import compare_gradients, gradient_table

__all__ = [
    "attention_maps",
    "coloured_words",
    "compare_gradients",
    "confusion_matrix",
    "gradient_flow",
    "gradient_table",
    "image_page",
    "learning_curve",
    "parameter_names",
]
