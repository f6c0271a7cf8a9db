"""How a person looks at a backward pass: tables and figures."""

from fbp.report.figures import (
    attention_maps,
    confusion_matrix,
    curves,
    gradient_flow,
    image_page,
    learning_curve,
    parameter_names,
    phase_diagram,
)
from fbp.report.tables import compare_gradients, gradient_table

__all__ = [
    "attention_maps",
    "compare_gradients",
    "confusion_matrix",
    "curves",
    "gradient_flow",
    "gradient_table",
    "image_page",
    "learning_curve",
    "parameter_names",
    "phase_diagram",
]
