"""Elementwise operations: y_i = f(x_i)  =>  x_bar_i = y_bar_i f'(x_i).

Where f' can be written with y it is: y is the next operation's input, so keeping it is usually free.
"""

from jax import lax
from jax.extend.core.primitives import add_p, convert_element_type_p, mul_p, neg_p, sub_p, tanh_p

from fbp.core import table

RULES = {
    # Arithmetic
    neg_p: table(lambda g: lax.neg(g)),
    add_p: table(lambda g: g,
                 lambda g: g),
    sub_p: table(lambda g: g,
                 lambda g: lax.neg(g)),
    mul_p: table(lambda g, b: g * b,
                 lambda g, a: g * a),
    # Conversions
    convert_element_type_p: table(lambda g, *, site: lax.convert_element_type(g, site.avals[0].dtype)),
    # Exponentials
    tanh_p: table(lambda g, y: g * (1 - y * y)),
}  # fmt: skip
