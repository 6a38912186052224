"""Worked solutions → one arithmetic expression each, whose value a grader computes.

The lines 33 + 13 = 46 and 46 - 19 = 27 become 33 + 13 - 19. Equations are read line by
line, or, as GSM8K has them, between << and >>.
"""

import ast
import math
import re
from collections.abc import Iterator
from fractions import Fraction

from limr_jax.data.problems import Problems

_ANNOTATION = re.compile(r"<<([^<>]*)>>")
_NUMBER = re.compile(r"[0-9]*\.?[0-9]+")
_SUM = re.compile(r"[0-9.+\-*/() ]{1,200}")  # nothing that names or calls anything
_VALUE = {
    ast.Add: Fraction.__add__,
    ast.Sub: Fraction.__sub__,
    ast.Mult: Fraction.__mul__,
    ast.Div: Fraction.__truediv__,
}


def boxed_expressions(problems: Problems) -> Iterator[dict]:
    """The rows whose solution is one expression, which is boxed in its place.

    A row without one, and one whose expression is not worth its reference answer, to
    the answer's last digit, is left out.
    """
    for i in range(len(problems)):
        row = problems.row(i)
        expression = as_expression(row["solution"], problems.prompts[i])
        if expression and agrees(expression, row["answer"]):
            yield row | {"solution": f"\\boxed{{{expression}}}"}


def as_expression(solution: str, problem: str) -> str | None:
    """The solution's last result by the problem's numbers; None where that fails.

    A number that an earlier equation gave is replaced by what gave it: once, and again
    where the problem does not have the number itself.
    """
    equations = _ANNOTATION.findall(solution)
    if not equations:
        equations = [line for line in solution.split("\n") if "=" in line]
    given = {Fraction(number) for number in _NUMBER.findall(problem)}
    results: dict[Fraction, ast.expr] = {}
    unused: set[Fraction] = set()

    class Replace(ast.NodeTransformer):
        """Numbers by the trees that gave them."""

        def visit_Constant(self, node):
            number = _constant(node)
            if number not in results or not (number in unused or number not in given):
                return node
            unused.discard(number)
            return results[number]

    tree = None
    for equation in equations:
        left, _, right = equation.partition("=")
        if not _SUM.fullmatch(left.strip()) or not _NUMBER.fullmatch(right.strip()):
            return None
        try:
            tree = Replace().visit(ast.parse(left.strip(), mode="eval").body)
        except (SyntaxError, ValueError):
            return None
        result = Fraction(right.strip())
        results[result] = tree
        unused.add(result)
    return ast.unparse(tree) if tree else None


def agrees(expression: str, answer: str) -> bool:
    """Whether an expression of numbers is worth the answer, rounded as that is."""
    answer = answer.replace(",", "")
    try:
        value = _value(ast.parse(expression, mode="eval").body)
        wanted = Fraction(answer)
    except (SyntaxError, ValueError, ZeroDivisionError):
        return False
    decimals = len(answer.partition(".")[2])
    return abs(value - wanted) <= (Fraction(1, 2 * 10**decimals) if decimals else 0)


def _constant(node: ast.Constant) -> Fraction:
    if type(node.value) is float and not math.isfinite(node.value):
        raise ValueError("a number without end")
    return Fraction(str(node.value))


def _value(node: ast.expr) -> Fraction:
    """The value of the four operations on numbers; ValueError for all else."""
    if isinstance(node, ast.Constant):
        return _constant(node)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -_value(node.operand)
    if isinstance(node, ast.BinOp) and type(node.op) in _VALUE:
        return _VALUE[type(node.op)](_value(node.left), _value(node.right))
    raise ValueError("not one of the four operations")
