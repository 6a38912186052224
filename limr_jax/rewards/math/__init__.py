"""The grader of mathematical answers: text and reference in, right or wrong out.

Read `grade.grade_math` first, then `compare.match_forms`. The modules, in the order in
which an answer meets them:

Where it runs
    grade          what a caller uses; what is settled without a worker process
    worker         the worker process: one JSON line in, one out

From a text to one spelling
    extract        which part of a text is its answer
    normalise      one spelling for an answer: `clean`
    notation       notations of other packages, schools and countries
    phrases        mathematics in words: "cube root of 125"
    chinese        Chinese numerals, with Arabic digits or without

From a spelling to a structure
    brackets       what stands outside all brackets
    forms          list, tuple, set, relation, matrix or item
    letters        which letters are variables; substitution
    variants       looser readings of a pair: without qualifiers and moduli, other names

Is it the same? `compare` asks, by the form that the answer has
    compare        the rules, lists and tuples among them
    words          words and sentences: yes, none, infinitely many
    multiple_choice    (C), (C) Cecile
    named_parts    answers of several parts that have names or numbers
    relations      equations and inequalities
    intervals      intervals, unions of them, inequalities in one variable
    piecewise      functions by cases
    sets           sets, events and propositions
    matrices       matrices, vectors and determinants
    series         sums and products with dots
    units          units of measurement, counted things, currencies
    times_of_day   times of day
    scalars        numbers and expressions, by their values
    literals       literal numbers and their rounding, without sympy
    sympy_parse    LaTeX to sympy
"""
