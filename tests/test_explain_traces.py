"""Traces of any program, judged from free runs: referees that are none, gaps that prove nothing."""

import json

import numpy as np
import pytest

import harness
from harness.cli.main import main
from harness.errors import HarnessError
from harness.explain import explain_traces
from harness.trace import TraceWriter

EPS = {"float32": 2.0**-23, "float64": 2.0**-52}
STEPS = 4


def network(step, draw, dtype, w, relu=True):
    """A little net of a stranger, with names that are not ours; gradients written out."""
    x = np.random.default_rng(step).standard_normal((6, 5))
    z = x @ w["dense.w"] + w["dense.b"]
    h = np.maximum(z, 0) if relu else z
    out = h @ w["out.w"]
    loss = (out**2).sum()
    d_out = 2 * out
    d_h = d_out @ w["out.w"].T
    d_z = d_h * (z > 0)
    made = {"act.z": z, "act.h": h, "act.out": out, "loss": np.array(loss)}
    made |= {"grad.out.w": h.T @ d_out, "grad.dense.w": x.T @ d_z, "grad.dense.b": d_z.sum(0)}
    eps = EPS[dtype]
    noisy = {
        name: value + eps * np.abs(value).max(initial=0) * draw.uniform(-1, 1, np.shape(value))
        for name, value in made.items()
    }
    new = {f"new.{name}": w[name] - 0.01 * made[f"grad.{name}"] for name in w}
    return x, noisy | new


def program(path, dtype="float32", seed=1, change=None, weights=7, header=None, label=None):
    """The trace of one program: `change(step, tensors, dtype)` is its fault or its oddity."""
    draw = np.random.default_rng(weights)
    w = {"dense.w": draw.normal(size=(5, 7)), "dense.b": draw.normal(size=7)}
    w["out.w"] = draw.normal(size=(7, 3)) / 4
    noise = np.random.default_rng(seed)
    with TraceWriter(path, label=label or path.stem, dtype=header or dtype) as trace:
        for step in range(1, STEPS + 1):
            x, made = network(step, noise, dtype, w)
            tensors = {"inputs/x": x.astype("float32").astype(dtype)}
            tensors |= {name: np.asarray(value, dtype) for name, value in made.items()}
            if change:
                change(step, tensors, dtype)
            trace.write(step, tensors)
            w = {name: np.asarray(tensors[f"new.{name}"], np.float64) for name in w}
    return path


def four(folder, change=None, other=None):
    """Both programs in both precisions; `change` is of a, `other` of b."""
    return {
        "a": program(folder / "a.trace", seed=1, change=change),
        "b": program(folder / "b.trace", seed=2, change=other),
        "referee_a": program(folder / "a64.trace", "float64", 3, change),
        "referee_b": program(folder / "b64.trace", "float64", 4, other),
    }


def doubled(step, tensors, dtype):
    tensors["grad.out.w"] = 2 * tensors["grad.out.w"]


def said(verdict):
    return " | ".join(verdict.evidence)


def both_ways(traces):
    """The verdict, and that with the sides exchanged."""
    yield explain_traces(**traces).verdict
    a, b, of_a, of_b = traces.values()
    yield explain_traces(b, a, referee_a=of_b, referee_b=of_a).verdict


def test_a_clean_pair_of_foreign_names_is_close_and_a_fault_is_a_bug_at_its_place(tmp_path):
    assert explain_traces(**four(tmp_path)).verdict.label == "close"
    for verdict in both_ways(four(tmp_path, doubled)):
        assert (verdict.label, verdict.where.step, verdict.where.tensor) == ("bug", 1, "grad.out.w")


class TestRefereesThatAreNone:
    """A verdict on the word of a referee needs one."""

    def refused(self, traces, words, **changed):
        with pytest.raises(HarnessError, match=words):
            explain_traces(**(traces | changed))

    def test_a_float32_trace_given_twice(self, tmp_path):
        traces = four(tmp_path, doubled)
        changed = {"referee_a": traces["a"], "referee_b": traces["b"]}
        self.refused(traces, r"referee of A \(.*a.trace\): a float32 run; .*--referee-a", **changed)

    def test_a_header_that_says_float64_over_float32_tensors(self, tmp_path):
        traces = four(tmp_path, doubled)
        for side, seed in (("a", 3), ("b", 4)):
            path = tmp_path / f"{side}-says.trace"
            change = doubled if side == "a" else None
            traces[f"referee_{side}"] = program(path, "float32", seed, change, header="float64")
        self.refused(traces, "its header says float64, and its tensors are float32")

    def test_float32_numbers_in_float64_tensors(self, tmp_path):
        def narrow(step, tensors, dtype):
            doubled(step, tensors, dtype)
            for name, value in tensors.items():
                tensors[name] = value.astype(np.float32).astype(dtype)

        traces = four(tmp_path, doubled)
        traces["referee_a"] = program(tmp_path / "n.trace", "float64", 3, narrow)
        self.refused(traces, "its float64 tensors hold float32 numbers")

    def test_referees_that_are_swapped(self, tmp_path):
        traces = four(tmp_path, doubled)
        swapped = {"referee_a": traces["referee_b"], "referee_b": traces["referee_a"]}
        self.refused(traces, "the referees look swapped: at grad.out.w of step 1", **swapped)

    def test_a_run_from_other_weights(self, tmp_path):
        traces = four(tmp_path, doubled)
        other = program(tmp_path / "o.trace", "float64", 3, doubled, weights=8)
        self.refused(traces, "most tensors of step 1 have nothing in common", referee_a=other)

    def test_a_run_on_other_inputs(self, tmp_path):
        def moved(step, tensors, dtype):
            tensors["inputs/x"] = tensors["inputs/x"] + 1

        traces = four(tmp_path, doubled)
        other = program(tmp_path / "o.trace", "float64", 3, moved)
        self.refused(traces, "it was given other inputs/x at step 1", referee_b=other)

    def test_a_loss_that_is_16_times_too_large_is_not_acquitted(self, tmp_path):
        def summed(step, tensors, dtype):
            tensors["loss"] = 16 * tensors["loss"]

        traces = four(tmp_path, summed)
        assert {verdict.label for verdict in both_ways(traces)} == {"bug"}
        self.refused(traces, "a float32 run", referee_a=traces["a"], referee_b=traces["b"])


def noise_of(name, scale=1e-2):
    """A tensor that is zero but for rounding, on whichever side this is."""

    def change(step, tensors, dtype):
        draw = np.random.default_rng(tensors["loss"].tobytes()[0] + step)
        value = scale * EPS[dtype] * draw.standard_normal(tensors[name].shape)
        tensors[name] = value.astype(dtype)

    return change


def constant_of_float32(step, tensors, dtype):
    """What Keras does in attention: a constant that is float32 in a float64 run too."""
    if dtype == "float64":
        tensors["act.h"] = tensors["act.h"] * (1 + 7e-9)


class TestGapsThatProveNothing:
    """Each is a note, and the search goes on behind it."""

    def test_a_tensor_that_is_zero_but_for_rounding(self, tmp_path):
        noise = noise_of("grad.dense.b")
        for verdict in both_ways(four(tmp_path, noise, noise)):
            assert verdict.label == "rounding"
            assert "zero but for rounding, on both sides: grad.dense.b" in said(verdict)

    def test_one_that_is_so_on_one_side_alone_is_a_bug(self, tmp_path):
        for verdict in both_ways(four(tmp_path, noise_of("grad.dense.b"))):
            assert (verdict.label, verdict.where.tensor) == ("bug", "grad.dense.b")

    def test_a_bug_behind_it_is_found(self, tmp_path):
        noise = noise_of("act.h")

        def guilty(step, tensors, dtype):
            noise(step, tensors, dtype)
            doubled(step, tensors, dtype)

        for verdict in both_ways(four(tmp_path, guilty, noise)):
            assert (verdict.label, verdict.where.tensor) == ("bug", "grad.out.w")

    def test_a_float64_gap_below_float32s_epsilon_where_float32_agrees(self, tmp_path):
        assert explain_traces(**four(tmp_path, constant_of_float32)).verdict.label == "close"

        def guilty(step, tensors, dtype):
            constant_of_float32(step, tensors, dtype)
            doubled(step, tensors, dtype)

        for verdict in both_ways(four(tmp_path, guilty)):
            assert (verdict.label, verdict.where.tensor) == ("bug", "grad.out.w")
            assert "as accurate as float32 in a float64 run" in said(verdict)

    def test_a_relu_that_rounding_flips(self, tmp_path):
        def flipped(low):
            def change(step, tensors, dtype):
                if step != 2 or dtype != "float32":
                    return
                z, h = tensors["act.z"], tensors["act.h"]
                z[3, 4] = np.float32(-6e-8 if low else 1.5e-7)
                h[3, 4] = max(z[3, 4], 0)
                if not low:  # the gradient passes
                    tensors["grad.dense.w"][:, 4] += np.float32(0.37)
                    tensors["grad.dense.b"][4] += np.float32(0.41)

            return change

        for verdict in both_ways(four(tmp_path, flipped(True), flipped(False))):
            assert verdict.label == "rounding"
            assert "crossed a discontinuity (a ReLU, a maximum) at step 2" in said(verdict)
            assert "[3, 4]" in said(verdict)

    @pytest.mark.parametrize("bug", [False, True])
    def test_relus_of_every_unit_flip_in_float64_and_one_in_float32(
        self, tmp_path, monkeypatch, bug
    ):
        # One row in six is many; in a batch of a real size it would be one in hundreds.
        monkeypatch.setattr(harness.explain.crossings, "MOST", 0.2)

        def flipped(low):
            def change(step, tensors, dtype):
                units = [4] if dtype == "float32" else range(7)
                size = EPS[dtype]
                for unit in units if step == 2 else ():
                    z = tensors["act.z"]
                    z[unit % 6, unit] = -size / 4 if low else size / 2
                    tensors["act.h"][unit % 6, unit] = max(z[unit % 6, unit], 0)
                for unit in (range(7) if bug else units) if step == 2 and not low else ():
                    tensors["grad.dense.w"][:, unit] += 0.37
                    tensors["grad.dense.b"][unit] += 0.41

            return change

        for verdict in both_ways(four(tmp_path, flipped(True), flipped(False))):
            assert verdict.label == ("bug" if bug else "rounding")
            assert ("and in the other precision there alone" in said(verdict)) != bug

    def test_a_gradient_that_is_off_elsewhere_is_not_excused_by_it(self, tmp_path):
        def crossed(low, wrong):
            def change(step, tensors, dtype):
                if dtype == "float32":
                    tensors["act.z"][3, 4] = np.float32(-6e-8 if low else 1.5e-7)
                    tensors["act.h"][3, 4] = max(tensors["act.z"][3, 4], 0)
                    if wrong:  # all of it, as a narrower format leaves it
                        g = tensors["grad.dense.w"]
                        tensors["grad.dense.w"] = g.astype(np.float16).astype(np.float32)

            return change

        for verdict in both_ways(four(tmp_path, crossed(True, True), crossed(False, False))):
            assert verdict.label == "precision"

    def test_without_referees_the_suspicion_is_told_and_nobody_accused(self, tmp_path):
        noise = noise_of("grad.dense.b")
        a, b, *_ = four(tmp_path, noise, noise).values()
        verdict = explain_traces(a, b).verdict
        assert verdict.label == "undecided"
        assert "may be zero but for rounding; both runs in float64 would tell" in said(verdict)
        assert f"harness explain {a} {b} --referee-a" in verdict.next


class TestFormats:
    """A narrower format needs numbers that only it can have made."""

    def test_nan_on_one_side_is_no_format(self, tmp_path):
        def broken(step, tensors, dtype):
            tensors["act.out"] = np.full_like(tensors["act.out"], np.nan)

        for verdict in both_ways(four(tmp_path, broken)):
            assert verdict.label == "bug"
            assert not [cause for cause in verdict.causes if cause.format]
            assert "NaN or infinity on one side alone" in said(verdict)

    @pytest.mark.parametrize("rates", [(1.0, 1.001), (0.5, 0.50001)])
    def test_a_learning_rate_that_is_exact_in_bfloat16_is_no_format(self, tmp_path, rates):
        def rate(value):
            def change(step, tensors, dtype):
                tensors["update/learning_rate"] = np.asarray(value, dtype)

            return change

        for verdict in both_ways(four(tmp_path, rate(rates[0]), rate(rates[1]))):
            assert verdict.label == "bug"
            assert not [cause for cause in verdict.causes if cause.format], verdict.causes

    def test_small_whole_numbers_are_no_format(self, tmp_path):
        def counted(by):
            def change(step, tensors, dtype):
                tensors["act.count"] = (np.arange(24) % 7 + by).astype(dtype)

            return change

        for verdict in both_ways(four(tmp_path, counted(1), counted(0.001))):
            assert not [cause for cause in verdict.causes if cause.format], verdict.causes


def command(*arguments):
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    return ended.value.code


def referees(traces):
    return ("--referee-a", traces["referee_a"], "--referee-b", traces["referee_b"])


def test_explain_ends_with_the_exit_code_of_the_verdict(tmp_path, capsys):
    noise = noise_of("grad.dense.b")
    rounding = four(tmp_path / "r", noise, noise)
    pair = rounding["a"], rounding["b"]
    assert command("explain", *pair, *referees(rounding)) == 0
    assert command("explain", *pair, *referees(rounding), "--strict") == 1
    assert command("explain", *pair) == 1  # undecided
    assert command("diff", *pair) == 1
    assert command("explain", pair[0], pair[0]) == 0
    bug = four(tmp_path / "b", doubled)
    assert command("explain", bug["a"], bug["b"], *referees(bug)) == 1
    assert command("explain", bug["a"], bug["b"], "--referee-a", bug["a"]) == 2
    capsys.readouterr()
    other = program(tmp_path / "o.trace", "float64", 3, doubled, weights=8)
    given = ("--referee-a", other, "--referee-b", bug["referee_b"], "--json")
    assert command("explain", bug["a"], bug["b"], *given) == 2
    assert "referee of A" in capsys.readouterr().err


def test_explain_takes_the_options_of_diff(tmp_path, capsys):
    traces = four(tmp_path, doubled)
    pair = traces["a"], traces["b"]
    assert command("explain", *pair, "--exclude", "grad.out.w", "--exclude", "new.*") == 0
    assert command("explain", *pair, "--include", "act.*", "--steps", "1:1") == 0
    assert command("explain", *pair, "--include", "grad.out.w", "--rtol", "2", "--steps", "1") == 0
    assert command("explain", *pair, "--include", "grad.out.w", "--factor", "1e8") == 0
    capsys.readouterr()
    assert command("explain", *pair, "--all", "--json") == 1
    assert len(json.loads(capsys.readouterr().out)["diff"]["divergences"]) > 1


def test_explain_is_a_function_of_the_package_too(tmp_path):
    traces = four(tmp_path, doubled)
    for _ in range(2):  # the second time its modules have been imported
        found = harness.explain(**traces)
        assert (found.diff.status, found.verdict.label) == ("diverged", "bug")
        assert harness.compare is not None
        assert callable(harness.compare)


def test_a_report_of_close_says_what_looks_closer(tmp_path, capsys):
    traces = four(tmp_path)
    assert command("explain", traces["a"], traces["b"]) == 0
    assert "--verdict looks closer" in capsys.readouterr().out
