"""Which measurements may be compared: `python3 -m unittest discover benches`, with nothing but the standard library."""

import argparse
import contextlib
import io
import unittest

import side_by_side

SHAPE = {"input": [2, 3], "dtype": "f32", "threads": 2, "device": "cpu"}


def run(check=(1.0,), seconds=1.0, peak=100, **changed):
    return {"shape": SHAPE | changed, "check": list(check), "seconds": [seconds], "peak_bytes": peak}


def asked(ratio=None, memory=None):
    return argparse.Namespace(threads=2, rounds=1, reps=1, least_ratio=ratio, most_memory=memory)


class Comparable(unittest.TestCase):
    def refused(self, ours, theirs, expected, excepted=()):
        reason = side_by_side.why_not_comparable(ours, theirs, 1e-4, excepted)
        self.assertIn(expected, reason or "None")

    def test_the_same_is_comparable(self):
        self.refused(run(), run(), "None")
        self.refused(run([1.0]), run([1.00009]), "None")
        self.refused(run([0.0]), run([1e-10]), "None")

    def test_what_differs_is_named(self):
        for key, value in [("input", [2, 4]), ("dtype", "bf16"), ("threads", 1), ("device", "cuda"), ("more", 1)]:
            self.refused(run(), run(**{key: value}), f"{key} is {SHAPE.get(key)} here and {value} there")
            self.refused(run(**{key: value}), run(), f"{key} is {value} here")

    def test_other_results_are_refused(self):
        self.refused(run([1.0]), run([1.001]), "results differ: 1 here, 1.001 there")
        self.refused(run([1.0, 2.0]), run([1.0]), "different things")
        self.refused(run([float("nan")]), run([1.0]), "results differ")

    def test_an_exception_is_of_one_key_only(self):
        self.refused(run(), run(threads=1), "None", {"threads": "why"})
        self.refused(run(), run(threads=1, dtype="f64"), "dtype is", {"threads": "why"})


class Table(unittest.TestCase):
    def printed(self, rows, runs, arguments):
        with contextlib.redirect_stdout(io.StringIO()) as out:
            failed = side_by_side.print_table(rows, runs, arguments)
        return failed, out.getvalue()

    def test_scipys_one_thread_is_an_exception_that_is_printed(self):
        row = next(row for row in side_by_side.ROWS if row[0] == "bca-parallel")
        runs = {("ppd", row[0]): [run()], ("torch", row[1]): [run(threads=1)]}
        failed, text = self.printed([row], runs, asked())
        self.assertEqual(failed, 0)
        self.assertIn("bca-parallel: threads is 2 here and 1 there, as scipy", text)
        failed, text = self.printed([("gelu", *row[1:])], {("ppd", "gelu"): [run()], ("torch", "bca"): [run(threads=1)]}, asked())
        self.assertEqual(failed, 1)
        self.assertIn("not comparable", text)

    def test_a_ratio_or_memory_that_falls_short_fails(self):
        runs = {("ppd", "gelu"): [run(seconds=1.0, peak=100)], ("torch", "gelu"): [run(seconds=1.5, peak=90)]}
        rows = [("gelu", "gelu", 1e-4)]
        for ratio, memory, expected in [(1.2, None, 0), (1.6, None, 1), (None, 1.0, 1), (None, 1.2, 0), (1.6, 1.0, 1)]:
            failed, text = self.printed(rows, runs, asked(ratio, memory))
            self.assertEqual(failed, expected, text)
        runs["ppd", "gelu"][0]["peak_bytes"] = None
        self.assertEqual(self.printed(rows, runs, asked(memory=1.0))[0], 1, "an unknown peak is none that holds")


if __name__ == "__main__":
    unittest.main()
