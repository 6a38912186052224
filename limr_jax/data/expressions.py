"""Worked solutions → one arithmetic expression each, whose value a grader computes.

The lines 33 + 13 = 46 and 46 - 19 = 27 become (33 + 13) - 19. Equations are read line
by line, or, as GSM8K has them, between << and >>.
"""

import ast
import re
from collections.abc import Iterator
from fractions import Fraction

from limr_jax.data.problems import Problems

_ANNOTATION = re.compile(r"<<([^<>]*)>>")
# Of so few digits that no number takes long; a fraction's are as many at most.
_NUMBER = re.compile(r"[0-9]{1,20}(?:\.[0-9]{1,20})?|\.[0-9]{1,20}")
_RESULT = re.compile(rf"-?(?:{_NUMBER.pattern})")
_THOUSANDS = re.compile(r"(?<=[0-9]),(?=[0-9]{3}(?![0-9]))")
_SUM = re.compile(r"[0-9.+\-*/() ]{1,200}")  # nothing that names or calls anything
_MOST = 100  # numbers of an expression: results of results grow as powers do
_SIGNS = {ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/"}
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
    results = _Results({Fraction(number) for number in _NUMBER.findall(problem)})
    tree = None
    for equation in equations:
        left, _, right = equation.partition("=")
        if not _SUM.fullmatch(left.strip()) or not _RESULT.fullmatch(right.strip()):
            return None
        try:
            tree = results.put_in(ast.parse(left.strip(), mode="eval").body)
        except (SyntaxError, ValueError):
            return None
        results.add(Fraction(right.strip()), tree)
    return _written(tree) if tree else None


class _Results(ast.NodeTransformer):
    """What the equations so far gave, by its value, and the tree that gave it.

    given: the problem's own numbers.
    """

    def __init__(self, given: set[Fraction]):
        self._given = given
        self._trees: dict[Fraction, tuple[ast.expr, int]] = {}  # and its numbers
        self._unused: set[Fraction] = set()
        self._numbers = 0  # and minus signs, of the tree that is being made

    def add(self, result: Fraction, tree: ast.expr) -> None:
        """The last tree of `put_in` gave this."""
        self._trees[result] = tree, self._numbers
        self._unused.add(result)

    def put_in(self, tree: ast.expr) -> ast.expr:
        """The tree with earlier trees where their results are.

        ValueError: it is too long, or no tree of the four operations.
        """
        self._numbers = 0
        return self.visit(tree)

    def visit_BinOp(self, node: ast.BinOp) -> ast.expr:
        """One of the four operations."""
        if type(node.op) not in _VALUE:
            raise ValueError("not one of the four operations")
        return self.generic_visit(node)

    def visit_UnaryOp(self, node: ast.UnaryOp) -> ast.expr:
        """A minus sign, which may be a result's."""
        if not isinstance(node.op, ast.USub):
            raise ValueError("not one of the four operations")
        if isinstance(node.operand, ast.Constant):
            found = self._earlier(-_constant(node.operand))
            if found:
                return found
        self._count(1)
        return self.generic_visit(node)

    def visit_Constant(self, node: ast.Constant) -> ast.expr:
        """A number, or the tree that gave it."""
        found = self._earlier(_constant(node))
        if not found:
            self._count(1)
        return found or node

    def _earlier(self, number: Fraction) -> ast.expr | None:
        """The tree that gave this number, if it is more likely that than the problem's.

        By chance a number of the problem may be a result as well.
        """
        is_result = number in self._unused or number not in self._given
        if not is_result or number not in self._trees:
            return None
        tree, numbers = self._trees[number]
        self._unused.discard(number)
        self._count(numbers)
        return tree

    def _count(self, more: int) -> None:
        self._numbers += more
        if self._numbers > _MOST:
            raise ValueError(f"an expression of more than {_MOST} numbers")


def _written(node: ast.expr) -> str:
    """The tree with brackets around each step but the last: what follows what shows."""

    def part(node: ast.expr) -> str:
        written = _written(node)
        return f"({written})" if isinstance(node, ast.BinOp) else written

    if isinstance(node, ast.BinOp):
        return f"{part(node.left)} {_SIGNS[type(node.op)]} {part(node.right)}"
    if isinstance(node, ast.UnaryOp):
        return f"-{part(node.operand)}"
    return ast.unparse(node)


def agrees(expression: str, answer: str) -> bool:
    """Whether an expression of numbers is worth the answer, rounded as that is."""
    answer = _THOUSANDS.sub("", answer)
    if not _RESULT.fullmatch(answer):
        return False
    wanted = Fraction(answer)
    try:
        value = _value(ast.parse(expression, mode="eval").body)
    except (SyntaxError, ValueError, ZeroDivisionError):
        return False
    decimals = len(answer.partition(".")[2])
    return abs(value - wanted) <= (Fraction(1, 2 * 10**decimals) if decimals else 0)


def _constant(node: ast.Constant) -> Fraction:
    """A number as it is written; ValueError where that takes a power of ten."""
    if not _NUMBER.fullmatch(str(node.value)):
        raise ValueError("no number of digits and a point")
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
