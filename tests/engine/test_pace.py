"""How many prompt tokens go beside running answers."""

from engine.pace import FIRST, LEAST, Pace


def test_first_steps_are_small() -> None:
    assert Pace(128).budget() == FIRST


def test_prompt_part_takes_as_long_as_the_writing_part() -> None:
    pace = Pace(128)
    for _ in range(40):
        pace.learn(n_writing=7, n_prompt=0, took_s=0.080)
        pace.learn(n_writing=7, n_prompt=32, took_s=0.080 + 32 * 0.002)
    assert pace.budget() in (39, 40)


def test_very_slow_prompts_still_go_on_and_very_fast_ones_are_bounded() -> None:
    slow, fast = Pace(128), Pace(128)
    for _ in range(40):
        slow.learn(n_writing=1, n_prompt=0, took_s=0.010)
        slow.learn(n_writing=0, n_prompt=256, took_s=256.0)
        fast.learn(n_writing=16, n_prompt=0, took_s=1.0)
        fast.learn(n_writing=0, n_prompt=256, took_s=0.256)
    assert slow.budget() == LEAST
    assert fast.budget() == 128


def test_what_disturbed_one_step_is_soon_forgotten() -> None:
    pace = Pace(128)
    for _ in range(20):
        pace.learn(n_writing=4, n_prompt=0, took_s=0.050)
        pace.learn(n_writing=0, n_prompt=100, took_s=0.100)
    usual = pace.budget()
    pace.learn(n_writing=4, n_prompt=usual, took_s=5.0)
    assert pace.budget() < usual
    for _ in range(20):
        pace.learn(n_writing=4, n_prompt=16, took_s=0.050 + 0.016)
    assert abs(pace.budget() - usual) <= usual // 10
