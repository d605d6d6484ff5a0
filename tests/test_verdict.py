"""Rounding or a bug: every branch of the verdict, on traces made for it."""

import numpy as np
import pytest

from harness.compare import Tolerance, diff
from harness.explain import Cause, Evidence, Following, Vote, judge
from harness.explain.following import follow
from harness.explain.verdict import _with_cause, amplification
from harness.trace import TraceWriter, open_trace

NAMES = ("forward/hidden", "forward/out", "forward/loss", "grads/w")
EPS = {"float32": 2.0**-23, "float64": 2.0**-52}


def values(dtype, step):
    """What a clean side computes at a step: the same in both precisions, rounded."""
    draw = np.random.default_rng(step)
    made = {name: draw.normal(size=(4, 6)) for name in NAMES}
    made["forward/loss"] = np.array(3.0 + step)
    return {name: np.asarray(array, dtype) for name, array in made.items()}


def rounded(array, seed, units=1.0):
    """`array` with noise of `units` epsilons of its largest element."""
    draw = np.random.default_rng(seed)
    scale = np.finfo(array.dtype).eps * np.abs(array).max()
    return (array + units * scale * draw.uniform(-1, 1, array.shape)).astype(array.dtype)


def write(folder, name, dtype="float32", seed=0, steps=3, change=None, noise=lambda step: 1.0):
    """A trace of `steps` steps; `change(step, tensors)` plants what the test is about."""
    with TraceWriter(folder / f"{name}.trace", label=name, dtype=dtype) as trace:
        for step in range(1, steps + 1):
            made = values(dtype, step)
            tensors = {
                key: rounded(array, 100 * seed + step, noise(step)) for key, array in made.items()
            }
            if change:
                change(step, tensors)
            trace.write(step, tensors)
    return folder / f"{name}.trace"


def scaled(factor, at=2, name="forward/out"):
    def change(step, tensors):
        if step == at:
            tensors[name] = (tensors[name] * factor).astype(tensors[name].dtype)

    return change


def unexplained(at=2, name="forward/out", size=0.3):
    """A difference that no cause explains: every element by its own amount."""

    def change(step, tensors):
        if step == at:
            draw = np.random.default_rng(99)
            array = tensors[name]
            tensors[name] = (array * (1 + size * draw.uniform(-1, 1, array.shape))).astype(
                array.dtype
            )

    return change


def pair(folder, dtype="float32", change=None, name="", **fields):
    a = write(folder, f"a{name}-{dtype}", dtype, seed=1, change=change, **fields)
    b = write(folder, f"b{name}-{dtype}", dtype, seed=2, **fields)
    return diff(a, b)


def following(folder, dtype, change=None, follower="a", **fields):
    a = write(folder, f"fa-{follower}-{dtype}", dtype, seed=3, change=change, **fields)
    b = write(folder, f"fb-{follower}-{dtype}", dtype, seed=4, **fields)
    return Following(follower, diff(a, b, all=True, tolerance=Tolerance.local()))


def numbered(verdict):
    return " | ".join(verdict.evidence)


def test_equal_bits_are_identical(tmp_path):
    write(tmp_path, "a")
    found = diff(tmp_path / "a.trace", tmp_path / "a.trace")
    assert judge(Evidence(found)).label == "identical"


def test_rounding_within_the_tolerance_is_close_and_says_how_much_of_it_was_used(tmp_path):
    verdict = judge(Evidence(pair(tmp_path)))
    assert (verdict.label, verdict.where, verdict.causes) == ("close", None, ())
    assert "used" in numbered(verdict)


def test_a_missing_tensor_is_structure_and_is_said_first(tmp_path):
    def change(step, tensors):
        del tensors["grads/w"]

    verdict = judge(Evidence(pair(tmp_path, change=change)))
    assert verdict.label == "structure"
    assert "missing tensor grads/w at step 1" in verdict.evidence[0]


def test_what_float64_following_shows_is_a_bug_at_its_place(tmp_path):
    planted = scaled(1.25)
    found = pair(tmp_path, change=planted)
    wide = (following(tmp_path, "float64", planted),)
    narrow = (following(tmp_path, "float32", planted),)
    verdict = judge(Evidence(found, None, narrow, wide))
    assert verdict.label == "bug"
    assert (verdict.where.step, verdict.where.tensor) == (2, "forward/out")
    assert verdict.where.dtype == "float64"
    assert verdict.causes[0].name == "factor"
    assert "at step 2 alone" in numbered(verdict)


def test_a_fault_that_float32_cannot_see_is_a_bug_where_float64_following_shows_it(tmp_path):
    tiny = scaled(1 + 1e-9)
    wide = (following(tmp_path, "float64", tiny),)
    narrow = (following(tmp_path, "float32"),)
    verdict = judge(Evidence(pair(tmp_path, change=unexplained(3)), None, narrow, wide))
    assert (verdict.label, verdict.where.step) == ("bug", 2)


def test_a_fault_that_only_one_direction_of_following_shows_is_found(tmp_path):
    planted = scaled(1.25)
    wide = (following(tmp_path, "float64"), following(tmp_path, "float64", planted, "b"))
    verdict = judge(Evidence(pair(tmp_path, change=planted), None, (), wide))
    assert (verdict.label, verdict.where.step) == ("bug", 2)


def test_what_float32_following_alone_shows_is_precision(tmp_path):
    def change(step, tensors):
        tensors["forward/out"] = tensors["forward/out"].astype(np.float16).astype(np.float32)

    found = pair(tmp_path, change=change)
    narrow, wide = (following(tmp_path, "float32", change),), (following(tmp_path, "float64"),)
    verdict = judge(Evidence(found, None, narrow, wide))
    assert (verdict.label, verdict.where.step) == ("precision", 1)
    assert verdict.where.tensor == "forward/out"
    assert verdict.causes[0].format == "float16"
    assert "in float64 every stage agrees" in numbered(verdict)


def test_a_few_dozen_epsilons_in_float32_alone_are_no_narrower_format(tmp_path):
    def change(step, tensors):
        if step == 2:
            tensors["grads/w"] = rounded(tensors["grads/w"], 7, 80)

    narrow, wide = (following(tmp_path, "float32", change),), (following(tmp_path, "float64"),)
    assert narrow[0].found.divergences
    verdict = judge(Evidence(pair(tmp_path, change=unexplained(3)), None, narrow, wide))
    assert verdict.label == "rounding"


def test_noise_of_the_size_of_a_format_in_float64_is_a_bug_all_the_same(tmp_path):
    planted = unexplained(size=2.0**-9)
    wide = (following(tmp_path, "float64", planted),)
    assert judge(Evidence(pair(tmp_path, change=planted), None, (), wide)).label == "bug"


def test_a_stray_cast_that_stays_in_float64_is_precision_all_the_same(tmp_path):
    def change(step, tensors):
        array = tensors["forward/out"]
        tensors["forward/out"] = array.astype(np.float16).astype(array.dtype)

    found = pair(tmp_path, change=change)
    wide = (following(tmp_path, "float64", change),)
    assert judge(Evidence(found, None, (), wide)).label == "precision"


def test_clean_following_makes_a_gap_rounding_however_far_the_free_runs_are(tmp_path):
    found = pair(tmp_path, change=unexplained(3))
    narrow, wide = (following(tmp_path, "float32"),), (following(tmp_path, "float64"),)
    verdict = judge(Evidence(found, None, narrow, wide))
    assert (verdict.label, verdict.causes) == ("rounding", ())
    assert verdict.where.step == 3
    assert "no stage of 3 steps differs in float64 by more than" in numbered(verdict)


def test_overflow_in_float32_alone_is_a_bug_and_no_narrower_format(tmp_path):
    def change(step, tensors):
        if step == 2:
            tensors["forward/loss"] = np.asarray(np.inf, tensors["forward/loss"].dtype)

    found = pair(tmp_path, change=change)
    narrow, wide = (following(tmp_path, "float32", change),), (following(tmp_path, "float64"),)
    verdict = judge(Evidence(found, None, narrow, wide))
    assert (verdict.label, verdict.where.tensor) == ("bug", "forward/loss")


def test_a_gap_of_free_runs_is_said_to_scale_with_epsilon_only_where_it_does(tmp_path):
    apart = unexplained(3)
    following_both = ((following(tmp_path, "float32"),), (following(tmp_path, "float64"),))
    found = pair(tmp_path, change=apart)
    shrunk = judge(Evidence(found, pair(tmp_path, "float64"), *following_both))
    assert "the gap scales with epsilon" in numbered(shrunk)
    grown = judge(Evidence(found, pair(tmp_path, "float64", apart, name="g"), *following_both))
    assert grown.label == "rounding"
    assert "scales with epsilon" not in numbered(grown)


def test_without_following_a_cause_is_tried_on_what_each_side_itself_traced(tmp_path):
    def change(step, tensors):
        tensors["update/global_norm"] = np.asarray(1.0, tensors["grads/w"].dtype)
        tensors["update/clipped/w"] = tensors["grads/w"] * (0.5 if step == 2 else 1)

    free, free64 = (
        diff(
            write(tmp_path, f"x-{dtype}", dtype, seed=1, change=change),
            write(tmp_path, f"y-{dtype}", dtype, seed=2, change=lambda s, t: change(1, t)),
        )
        for dtype in EPS
    )
    asked = []
    verdict = judge(Evidence(free, free64), lambda *place: asked.append(place))
    assert (verdict.label, verdict.where.tensor) == ("bug", "update/clipped/w")
    assert not asked, "a referee that is fed by one side has nothing to say of free runs"


def test_a_stage_that_rounds_as_badly_in_both_precisions_is_no_bug(tmp_path):
    def badly(dtype):
        def change(step, tensors):
            if step == 2:
                tensors["grads/w"] = rounded(tensors["grads/w"], 7, 500)

        return (following(tmp_path, dtype, change),)

    found = pair(tmp_path, change=unexplained(3))
    verdict = judge(Evidence(found, None, badly("float32"), badly("float64")))
    assert verdict.label == "rounding"
    # In one precision alone it would be an accusation.
    alone = judge(Evidence(found, None, (following(tmp_path, "float32"),), badly("float64")))
    assert alone.label == "bug"


def test_a_large_gap_in_float32_following_is_a_bug_where_float64_could_not_be_run(tmp_path):
    planted = unexplained()
    narrow = (following(tmp_path, "float32", planted),)
    lacking = ("side a failed after step 0: RuntimeError: expected Double",)
    verdict = judge(Evidence(pair(tmp_path, change=planted), None, narrow, lacking=lacking))
    assert verdict.label == "bug"
    assert verdict.evidence[-1] == lacking[0]


def test_a_small_unexplained_gap_in_float32_following_alone_is_undecided(tmp_path):
    planted = unexplained(size=1e-3)
    narrow = (following(tmp_path, "float32", planted),)
    verdict = judge(Evidence(pair(tmp_path, change=planted), None, narrow))
    assert verdict.label == "undecided"
    assert "--referee-a" in verdict.next


def test_close_free_runs_stay_close_when_they_are_followed_anyway(tmp_path):
    wide = (following(tmp_path, "float64"),)
    assert judge(Evidence(pair(tmp_path), None, (), wide)).label == "close"
    planted = (following(tmp_path, "float64", scaled(1 + 1e-9)),)
    assert judge(Evidence(pair(tmp_path), None, (), planted)).label == "bug"


def test_two_faults_are_both_listed_and_the_first_decides(tmp_path):
    def change(step, tensors):
        scaled(1.25, 2)(step, tensors)
        scaled(-1, 2, "grads/w")(step, tensors)

    wide = (following(tmp_path, "float64", change),)
    verdict = judge(Evidence(pair(tmp_path, change=change), None, (), wide))
    assert [place.tensor for place in verdict.places] == ["forward/out", "grads/w"]
    assert verdict.where.tensor == "forward/out"


@pytest.mark.parametrize(
    ("faint", "other", "decides"),
    [
        (1 + 3e-7, "params/w", "params/w"),  # torch's 1e-6 beside a norm of 3
        (1 + 1e-4, "params/w", "update/clipped/w"),
        (1 + 3e-7, None, "update/clipped/w"),
        (1 + 3e-7, "params/w at step 3", "params/w"),
    ],
)
def test_a_faint_difference_of_clipping_hides_no_visible_one(tmp_path, faint, other, decides):
    def change(step, tensors):
        draw = np.random.default_rng(step)
        for name in ("update/clipped/w", "params/w"):
            tensors[name] = draw.normal(size=(4, 6))

    def wrong(step, tensors):
        change(step, tensors)
        tensors["update/clipped/w"] *= faint
        if other and step == (3 if "3" in other else 2):
            tensors["params/w"] *= 1.01

    a = write(tmp_path, "a", "float64", change=wrong)
    b = write(tmp_path, "b", "float64", change=change)
    wide = Following("a", diff(a, b, all=True, tolerance=Tolerance.local()))
    found = follow(Evidence(pair(tmp_path), None, (), (wide,)))
    assert found.place.tensor == decides
    parts = {place.tensor for place, _ in found.others}
    expected = {"update/clipped/w", "params/w"} if other else {"update/clipped/w"}
    assert parts == expected - {decides}
    assert all(shown is wide for _, shown in found.others)


def test_nan_on_one_side_is_said_before_anything_else(tmp_path):
    def change(step, tensors):
        if step == 2:
            tensors["forward/out"][1, 2] = np.nan

    wide = (following(tmp_path, "float64", change),)
    verdict = judge(Evidence(pair(tmp_path, change=change), None, (), wide))
    assert verdict.label == "bug"
    assert verdict.evidence[0].startswith("NaN or infinity on one side alone: 1 elements")


def test_the_referee_names_the_side_that_is_off(tmp_path):
    planted = scaled(1.25)
    wide = (following(tmp_path, "float64", planted),)
    evidence = Evidence(pair(tmp_path, change=planted), None, (), wide)
    asked = []

    def referee(shown, place):
        asked.append((shown.follower, place.tensor))
        return Vote("NumPy", 1e15, 1.5)

    verdict = judge(evidence, referee)
    assert asked == [("a", "forward/out")]
    assert verdict.side == "a-float32"
    assert "is the one that is off" in numbered(verdict)


@pytest.mark.parametrize(("far", "near"), [(12.0, 1.0), (1e9, 9e8)])
def test_a_referee_that_is_near_both_or_far_from_both_names_neither(far, near):
    assert Vote("NumPy", far, near).against(("a", "b")) is None
    assert Vote("NumPy", near, far).against(("a", "b")) is None
    assert Vote("NumPy", near, 1e15).against(("a", "b")) == "b"


def test_without_following_a_jump_that_does_not_scale_with_epsilon_is_a_bug(tmp_path):
    planted = unexplained()
    free64 = pair(tmp_path, "float64", planted)
    verdict = judge(Evidence(pair(tmp_path, change=planted), free64))
    assert (verdict.label, verdict.where.step, verdict.where.tensor) == ("bug", 2, "forward/out")
    assert "does not scale with epsilon" in numbered(verdict)


def test_without_following_a_gap_that_scales_with_epsilon_is_rounding(tmp_path):
    def grown(dtype):
        def change(step, tensors):
            for name, array in tensors.items():
                tensors[name] = rounded(array, 5, 30.0**step)

        return pair(tmp_path, dtype, change)

    verdict = judge(Evidence(grown("float32"), grown("float64")))
    assert verdict.label == "rounding"
    assert "the gap scales with epsilon" in numbered(verdict)


def test_without_following_a_side_far_from_its_own_float64_run_is_imprecise(tmp_path):
    def always(step, tensors):
        unexplained(at=step, size=1e-3)(step, tensors)

    verdict = judge(Evidence(pair(tmp_path, change=always), pair(tmp_path, "float64")))
    assert verdict.label == "precision"
    assert "a-float32's float32 run is" in numbered(verdict)


def test_a_tensor_that_agreed_at_earlier_steps_is_in_no_narrower_format(tmp_path):
    once = pair(tmp_path, change=unexplained(at=3, size=1e-3))
    verdict = judge(Evidence(once, pair(tmp_path, "float64")))
    assert verdict.label == "undecided"
    assert "a narrower format would show at every step" in numbered(verdict)


def test_without_following_both_sides_far_from_their_float64_runs_is_undecided(tmp_path):
    planted = unexplained(size=1e-3)
    found = diff(
        write(tmp_path, "x", seed=1, change=planted),
        write(tmp_path, "y", seed=2, change=unexplained(size=-1e-3)),
    )
    assert judge(Evidence(found, pair(tmp_path, "float64"))).label == "undecided"


def test_a_float64_gap_that_came_little_by_little_never_convicts(tmp_path):
    def late(step, tensors):
        for name, array in tensors.items():
            tensors[name] = rounded(array, 5, 200.0**step)

    def too_late(step, tensors):  # float32 has nothing left to lose when float64 is a percent apart
        for name, array in tensors.items():
            tensors[name] = rounded(array, 5, min(20.0**step, 2.0**20))

    free = pair(tmp_path, change=too_late, steps=8)
    free64 = pair(tmp_path, "float64", late, steps=8)
    assert free64.status == "diverged"
    verdict = judge(Evidence(free, free64))
    assert verdict.label in ("undecided", "rounding")


def test_a_float64_gap_far_over_that_of_float32_convicts_only_where_it_is_a_jump(tmp_path):
    def grown(before, at_once):
        def change(step, tensors):
            units = {1: before, 2: at_once}.get(step, 0.1)
            tensors["grads/w"] = rounded(tensors["grads/w"], 5, units)

        return change

    found = pair(tmp_path, change=unexplained(2, "grads/w", 1e-4))
    far = 2e-5 / EPS["float64"]
    little = pair(tmp_path, "float64", grown(far / 200, far), name="little")
    assert judge(Evidence(found, little)).label == "undecided"
    jump = pair(tmp_path, "float64", grown(5, far), name="jump")
    assert judge(Evidence(found, jump)).label == "bug"


def test_a_narrower_format_is_no_bug_and_a_certain_cause_settles_what_is_open():
    sure = Cause("reduced-precision", "", 1.0, "certain", "float16")
    likely = Cause("reduced-precision", "", 1.0, "likely", "bfloat16")
    other = Cause("factor", "", 1.0, "certain")
    assert [_with_cause(label, [sure]) for label in ("bug", "undecided")] == ["precision"] * 2
    labels = [_with_cause(label, [likely]) for label in ("bug", "undecided")]
    assert labels == ["precision", "undecided"], "what is likely decides nothing that is open"
    assert [_with_cause(label, [other]) for label in ("bug", "undecided")] == ["bug", "bug"]
    assert _with_cause("precision", [other]) == "precision"
    assert _with_cause("undecided", [Cause("factor", "", 1.0, "likely")]) == "undecided"
    assert _with_cause("undecided", []) == "undecided"


def test_free_runs_alone_do_not_decide_unless_a_cause_explains_them(tmp_path):
    verdict = judge(Evidence(pair(tmp_path, change=unexplained())))
    assert (verdict.label, verdict.causes) == ("undecided", ())
    assert "--referee-a A64" in verdict.next
    explained = judge(Evidence(pair(tmp_path, change=scaled(-1))))
    assert (explained.label, explained.causes[0].name) == ("bug", "sign")


def test_different_inputs_are_a_bug_whatever_else_is_known(tmp_path):
    def change(step, tensors):
        tensors["inputs/x"] = np.arange(12).reshape(3, 4) + (step == 2)

    a = write(tmp_path, "a", seed=1, change=change)
    b = write(tmp_path, "b", seed=1, change=lambda step, t: change(1, t))
    verdict = judge(Evidence(diff(a, b)))
    assert (verdict.label, verdict.where.tensor, verdict.where.step) == ("bug", "inputs/x", 2)
    assert "the sides were given different inputs/x at step 2" in numbered(verdict)


def test_amplification_is_the_slope_of_the_distance_in_doublings():
    grown = [(step, 3.0 * 2.0 ** (0.75 * step)) for step in range(1, 11)]
    assert amplification(grown) == pytest.approx(0.75)
    saturated = [*grown, *((step, 8e6) for step in range(11, 40))]
    assert amplification(saturated) == pytest.approx(0.75)
    assert amplification(grown[:3]) is None


def test_growth_is_told_with_the_step_from_which_traces_say_nothing(tmp_path):
    def grown(step, tensors):
        for name, array in tensors.items():
            tensors[name] = rounded(array, step, 2.0**step)

    found = pair(tmp_path, change=grown, steps=12)
    verdict = judge(Evidence(found, None, (), (following(tmp_path, "float64"),)))
    assert verdict.doublings == pytest.approx(1, abs=0.2)
    assert "times a step" in numbered(verdict)
    flat = judge(Evidence(pair(tmp_path, change=unexplained(9), steps=9, name="flat")))
    assert "rounding does not grow from step to step here" in numbered(flat)


def test_traces_are_read_by_name_so_a_place_can_be_looked_at(tmp_path):
    planted = scaled(1.25)
    wide = (following(tmp_path, "float64", planted),)
    verdict = judge(Evidence(pair(tmp_path, change=planted), None, (), wide))
    command = verdict.next.split("harness show ")[1].split()
    assert open_trace(command[0]).step(int(command[3])).find(command[1])
