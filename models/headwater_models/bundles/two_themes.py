"""A training-free user encoder with two interests: what the user looks at now, and the other theme of the events before.

The state holds two decayed, action-weighted sums of item vectors of length one, each with the sum of its weights. `run` sums
the newest events as long as each is like those before it. As far as an event is not, `run` moves to `before`. So the events of
one theme add up undisturbed by those of another.

The first interest is the direction of `run`. The second is that of `before`, less a part of what lies along `run`: where two
themes take turns, `before` has both. It has a vote only if enough of all that the sums hold is not along `run`.

What moves is a smooth function of likeness, and both sums decay with each event. So the state soon depends on the newest events
alone. With a steep function, or runs that come back from `before`, differences of long ago would grow again.
"""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx

from headwater_models.bundles.mean_config import MeanConfig
from headwater_models.bundles.text_encoder import parsed

INTERESTS = 2


@dataclass(frozen=True)
class TwoThemesConfig:
    """How the sums decay, what ends a run, and from which evidence on the second interest votes.

    Evidence is the length of what of `before` is not along `run`, divided by the weights of both sums. It is near 0 for events
    of one theme and for a theme of long ago.
    """

    run: MeanConfig = field(default_factory=lambda: MeanConfig(keep=0.6))
    before: MeanConfig = field(
        default_factory=lambda: MeanConfig(keep=0.84)
    )  # from 0.86 on the oldest events would stay
    # Half of a run moves when its events have this cosine to the new one in the mean. Under the starter's tower three
    # quarters of the items of one category or brand lie above, nine in ten of two lie below.
    alike: float = 0.55
    steepness: float = 10.0
    # The part of what lies along the run that is taken from the second interest. Unrelated items have a cosine of a third:
    # without all of it, the other theme would be looked for away from where its own items are.
    apart: float = 0.65
    silent_below: float = 0.04
    full_from: float = 0.08
    # Of the second interest, relative to the first. Lists are fused by reciprocal rank, so its first item has place five,
    # and later ones alternate: both themes are on the first page, and the first four items are as good as without it.
    vote: float = 0.95


def state_size(dim: int) -> int:
    """Numbers of a state: both sums, each with the sum of its weights."""
    return 2 * (dim + 1)


def step_graph(dim: int, config: TwoThemesConfig) -> onnx.ModelProto:
    """Event by event: as far as an event is unlike the run, the run moves to `before`; then the event joins it."""
    lines: list[str] = []
    constants: dict[str, object] = {}
    for name, sum_ in (("run", config.run), ("before", config.before)):
        lines.append(f"""
            {name}_cooling = Mul(gaps_s, {name}_cooling_per_s)
            {name}_log_keep = Add({name}_cooling, {name}_log_keep_per_event)
            {name}_masked = Mul({name}_log_keep, mask)
            {name}_left = Exp({name}_masked)
            {name}_keeps = Unsqueeze({name}_left, last_axis)
        """)
        constants |= {
            f"{name}_cooling_per_s": np.float32(-np.log(2) / sum_.half_life_s),
            f"{name}_log_keep_per_event": np.float32(np.log(sum_.keep)),
        }
    sums, one = f"float[users, {dim + 1}]", "float[users, 1]"
    return parsed(
        f"""
        step (float[users, {state_size(dim)}] state, float[users, events, {dim}] items, int64[users, events] actions,
              float[users, events] gaps_s, float[users, events] mask) => (float[users, {state_size(dim)}] new_state)
        {{
            {"".join(lines)}
            weight = Gather(weights, actions)
            real_weight = Mul(weight, mask)
            weights_of_events = Unsqueeze(real_weight, last_axis)
            weighted = Mul(items, weights_of_events)
            joining = Concat <axis = -1> (weighted, weights_of_events)
            lengths = ReduceL2 <keepdims = 1> (items, last_axis)
            real = Unsqueeze(mask, last_axis)
            at_most_one = Min(lengths, one)
            says_something = Mul(at_most_one, real)
            no_weights = Mul(weights_of_events, zero)
            padded = Concat <axis = -1> (items, no_weights)
            steep_items = Mul(padded, minus_steepness)
            first_run, first_before = Split <axis = -1, num_outputs = 2> (state)
            last_run, last_before = Scan <
                num_scan_inputs: int = 5, scan_input_axes = [1, 1, 1, 1, 1],
                body: graph = event ({sums} run, {sums} before,
                                     {sums} item, {sums} added, {one} says, {one} run_keep, {one} before_keep)
                    => ({sums} new_run, {sums} new_before)
                {{
                    products = Mul(item, run)
                    summed = ReduceSum <keepdims = 1> (products, last_axis)
                    run_weight = Slice(run, last_place, end, last_axis)
                    divisor = Max(run_weight, tiny)
                    mean = Div(summed, divisor)
                    unlike = Add(mean, steep_alike)
                    part = Sigmoid(unlike)
                    moving = Mul(part, says)
                    moved = Mul(run, moving)
                    stayed = Sub(run, moved)
                    kept = Mul(stayed, run_keep)
                    new_run = Add(kept, added)
                    all_before = Add(before, moved)
                    new_before = Mul(all_before, before_keep)
                }}
            > (first_run, first_before, steep_items, joining, says_something, run_keeps, before_keeps)
            new_state = Concat <axis = -1> (last_run, last_before)
        }}
        """,
        last_axis=np.array([-1]),
        last_place=np.array([dim]),
        end=np.array([dim + 1]),
        tiny=np.float32(1e-6),
        zero=np.float32(0),
        one=np.float32(1),
        minus_steepness=np.float32(-config.steepness),
        steep_alike=np.float32(config.steepness * config.alike),
        weights=np.array(config.run.weights(), np.float32),
        **constants,
    )


def read_graph(dim: int, config: TwoThemesConfig) -> onnx.ModelProto:
    """Two directions of length one; a second interest that has no vote, and all of a user without events, are zero."""
    return parsed(
        f"""
        read (float[users, {state_size(dim)}] state, float[users] gap_to_now_s)
            => (float[users, {INTERESTS}, {dim}] interests, float[users, {INTERESTS}] weights)
        {{
            run, run_weight, before, before_weight = Split <axis = -1> (state, parts)
            run_length = ReduceL2 <keepdims = 1> (run, last_axis)
            run_divisor = Max(run_length, tiny)
            now = Div(run, run_divisor)
            both = Mul(before, now)
            along = ReduceSum <keepdims = 1> (both, last_axis)
            along_now = Mul(now, along)
            rest = Sub(before, along_now)
            rest_length = ReduceL2 <keepdims = 1> (rest, last_axis)
            taken = Mul(along_now, apart)
            leaning = Sub(before, taken)
            leaning_length = ReduceL2 <keepdims = 1> (leaning, last_axis)
            leaning_divisor = Max(leaning_length, tiny)
            other = Div(leaning, leaning_divisor)
            any = Greater(run_length, tiny)
            one_if_any = Cast <to = 1> (any)
            weight_of_all = Add(run_weight, before_weight)
            weight_divisor = Max(weight_of_all, tiny)
            evidence = Div(rest_length, weight_divisor)
            above = Sub(evidence, silent_below)
            share = Div(above, ramp)
            share_within = Clip(share, zero, one)
            second_weight = Mul(share_within, vote)
            speaks = Greater(share_within, zero)
            one_if_speaks = Cast <to = 1> (speaks)
            second = Mul(other, one_if_speaks)
            rows = Concat <axis = -1> (now, second)
            interests = Reshape(rows, shape)
            now_times_zero = Mul(gap_to_now_s, zero)
            column = Unsqueeze(now_times_zero, first_axis)
            first_weight = Add(one_if_any, column)
            weights = Concat <axis = -1> (first_weight, second_weight)
        }}
        """,
        parts=np.array([dim, 1, dim, 1]),
        shape=np.array([-1, INTERESTS, dim]),
        last_axis=np.array([-1]),
        first_axis=np.array([1]),
        tiny=np.float32(1e-6),
        apart=np.float32(config.apart),
        silent_below=np.float32(config.silent_below),
        ramp=np.float32(config.full_from - config.silent_below),
        vote=np.float32(config.vote),
        zero=np.float32(0),
        one=np.float32(1),
    )


def write_user_graphs(folder: Path, dim: int, config: TwoThemesConfig) -> None:
    """Write step.onnx and read.onnx."""
    onnx.save(step_graph(dim, config), folder / "step.onnx")
    onnx.save(read_graph(dim, config), folder / "read.onnx")
