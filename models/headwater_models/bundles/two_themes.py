"""A training-free user encoder with two interests: what the user looks at now, and the other theme of the events before.

The state holds two decayed, action-weighted sums of item vectors of length one: `recent`, mostly the last two events, and
`longer`, some ten events. The first interest is the direction of `recent`. The second is what is left of `longer` without
that direction, so a user with two favourite themes sees both. Of the direction it gets back what unrelated items share: without
it the other theme would be looked for away from the first one, where its own items are not. It has a vote only if several events
agree on it: unrelated events add up to a short vector, events of one theme to a long one.
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
    """How the sums decay, and from which evidence on the second interest votes.

    Evidence is the squared length of the rest of `longer`, divided by the sum of its squared weights. It is near 0 for
    events of one theme, which lie along `recent`, and grows with each event that agrees with others on another one.
    """

    recent: MeanConfig = field(default_factory=lambda: MeanConfig(keep=0.25))
    longer: MeanConfig = field(
        default_factory=lambda: MeanConfig(keep=0.84)
    )  # from 0.86 on the oldest events would stay
    silent_below: float = 0.3
    full_from: float = 0.4
    shared: float = (
        0.3  # the cosine of unrelated items, half of whose pairs lie above it in a catalog with descriptions
    )
    # Of the second interest, relative to the first. Lists are fused by reciprocal rank, so its first item has place five,
    # and later ones alternate: both themes are on the first page, and the first four items are as good as without it.
    vote: float = 0.95


def state_size(dim: int) -> int:
    """Numbers of a state: both sums, and the sum of the squared weights of `longer`."""
    return 2 * dim + 1


def step_graph(dim: int, config: TwoThemesConfig) -> onnx.ModelProto:
    """Each sum decays by event and by time and takes up the new items. Sums run backwards from the last event."""
    lines: list[str] = []
    constants: dict[str, object] = {}
    for name, sum_ in (("recent", config.recent), ("longer", config.longer)):
        lines.append(f"""
            {name}_cooling = Mul(gaps_s, {name}_cooling_per_s)
            {name}_log_keep = Add({name}_cooling, {name}_log_keep_per_event)
            {name}_masked = Mul({name}_log_keep, mask)
            {name}_log_left = CumSum <exclusive = 1, reverse = 1> ({name}_masked, events_axis)
            {name}_left = Exp({name}_log_left)
            {name}_weight = Gather({name}_weights, actions)
            {name}_real = Mul({name}_weight, mask)
            {name}_share = Mul({name}_real, {name}_left)
            {name}_row = Unsqueeze({name}_share, events_axis)
            {name}_summed = MatMul({name}_row, items)
            {name}_added = Squeeze({name}_summed, events_axis)
            {name}_log_all = ReduceSum <keepdims = 1> ({name}_masked, events_axis)
            {name}_all_left = Exp({name}_log_all)
            {name}_kept = Mul({name}_before, {name}_all_left)
            {name}_after = Add({name}_kept, {name}_added)
        """)
        constants |= {
            f"{name}_cooling_per_s": np.float32(-np.log(2) / sum_.half_life_s),
            f"{name}_log_keep_per_event": np.float32(np.log(sum_.keep)),
            f"{name}_weights": np.array(sum_.weights(), np.float32),
        }
    return parsed(
        f"""
        step (float[users, {state_size(dim)}] state, float[users, events, {dim}] items, int64[users, events] actions,
              float[users, events] gaps_s, float[users, events] mask) => (float[users, {state_size(dim)}] new_state)
        {{
            recent_before, longer_before, squares_before = Split <axis = -1> (state, parts)
            {"".join(lines)}
            squared = Mul(longer_share, longer_share)
            squares_added = ReduceSum <keepdims = 1> (squared, events_axis)
            all_left_squared = Mul(longer_all_left, longer_all_left)
            squares_kept = Mul(squares_before, all_left_squared)
            squares_after = Add(squares_kept, squares_added)
            new_state = Concat <axis = -1> (recent_after, longer_after, squares_after)
        }}
        """,
        parts=np.array([dim, dim, 1]),
        events_axis=np.array([1]),
        **constants,
    )


def read_graph(dim: int, config: TwoThemesConfig) -> onnx.ModelProto:
    """Two directions of length one; a second interest that has no vote, and all of a user without events, are zero."""
    return parsed(
        f"""
        read (float[users, {state_size(dim)}] state, float[users] gap_to_now_s)
            => (float[users, {INTERESTS}, {dim}] interests, float[users, {INTERESTS}] weights)
        {{
            recent, longer, squares = Split <axis = -1> (state, parts)
            recent_length = ReduceL2 <keepdims = 1> (recent, last_axis)
            recent_divisor = Max(recent_length, tiny)
            now = Div(recent, recent_divisor)
            both = Mul(longer, now)
            along = ReduceSum <keepdims = 1> (both, last_axis)
            along_now = Mul(now, along)
            rest = Sub(longer, along_now)
            rest_length = ReduceL2 <keepdims = 1> (rest, last_axis)
            rest_divisor = Max(rest_length, tiny)
            rest_direction = Div(rest, rest_divisor)
            shared_now = Mul(now, shared_share)
            leaning = Add(rest_direction, shared_now)
            leaning_length = ReduceL2 <keepdims = 1> (leaning, last_axis)
            leaning_divisor = Max(leaning_length, tiny)
            other = Div(leaning, leaning_divisor)
            any = Greater(recent_length, tiny)
            one_if_any = Cast <to = 1> (any)
            rest_squared = Mul(rest_length, rest_length)
            squares_divisor = Max(squares, tiny)
            evidence = Div(rest_squared, squares_divisor)
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
        parts=np.array([dim, dim, 1]),
        shape=np.array([-1, INTERESTS, dim]),
        last_axis=np.array([-1]),
        first_axis=np.array([1]),
        tiny=np.float32(1e-6),
        silent_below=np.float32(config.silent_below),
        ramp=np.float32(config.full_from - config.silent_below),
        vote=np.float32(config.vote),
        shared_share=np.float32(config.shared),
        zero=np.float32(0),
        one=np.float32(1),
    )


def write_user_graphs(folder: Path, dim: int, config: TwoThemesConfig) -> None:
    """Write step.onnx and read.onnx."""
    onnx.save(step_graph(dim, config), folder / "step.onnx")
    onnx.save(read_graph(dim, config), folder / "read.onnx")
