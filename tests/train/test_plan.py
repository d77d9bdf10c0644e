import pytest

from ratfast import InputError, config, protocol
from ratfast.data import scan
from ratfast.train.plan import PRETRAINED, make_plan


def plan_of(recipe: config.Recipe, data_dir):
    names = [recipe.data.target, *recipe.data.aux]
    return make_plan(recipe, {name: scan(data_dir / name) for name in names})


def test_stages_come_in_an_order_in_which_each_finds_its_start(recipe, data_dir) -> None:
    plan = plan_of(recipe, data_dir)
    seen = {PRETRAINED}
    for job in plan.jobs:
        assert job.source in seen
        assert job.probe is None or job.probe in seen
        seen.add(job.name)
    assert [job.stage for job in plan.jobs] == ["probe"] * 2 + ["auxiliary"] * 2 + ["probe"] + ["target"] * 3
    assert len({job.name for job in plan.jobs}) == len(plan.jobs)


def test_members_start_in_turn_from_the_pretrained_weights_and_each_auxiliary(recipe, data_dir) -> None:
    members = plan_of(recipe, data_dir).members(0)
    assert [job.source for job in members] == [PRETRAINED, "auxiliary/Far/run00", "auxiliary/Near/run00"]
    # Only an auxiliary start is probed again, in proportion to the length of the run.
    assert [job.probe_steps for job in members] == [0, protocol.probe_steps(3), protocol.probe_steps(3)]
    assert all(job.test_env == 1 and job.probe == "probe/Shapes" for job in members)
    assert [job.run_seed for job in members] == [protocol.run_seed("Shapes", 1, run, 0) for run in range(3)]


def test_auxiliary_runs_hold_no_domain_out(recipe, data_dir) -> None:
    auxiliary = [job for job in plan_of(recipe, data_dir).jobs if job.stage == "auxiliary"]
    assert all(
        job.test_env is None and job.run_seed == protocol.run_seed(job.dataset, -1, 0, 0) for job in auxiliary
    )


def test_the_seed_is_the_first_trial(recipe, data_dir) -> None:
    values = recipe.to_dict()
    values["train"] |= {"seed": 5, "trials": 2}
    plan = plan_of(config.from_dict(values), data_dir)
    assert plan.trial_seeds == [5, 6]
    assert [len(plan.members(seed)) for seed in (5, 6)] == [3, 3]


@pytest.mark.parametrize("test_env", [3, -1, "twilight"])
def test_a_domain_that_is_not_there(recipe, data_dir, test_env) -> None:
    values = recipe.to_dict()
    values["data"]["test_env"] = test_env
    with pytest.raises(InputError, match=r"dark.*grey.*light|test_env"):
        plan_of(config.from_dict(values), data_dir)


def test_the_graph_says_what_each_task_needs(recipe, data_dir) -> None:
    values = recipe.to_dict()
    values["train"] |= {"rows": ["all"], "trials": 2}
    plan = plan_of(config.from_dict(values), data_dir)
    needs = plan.prerequisites()
    assert needs.keys() == {task.name for task in plan.tasks}
    assert needs["probe/Shapes"] == needs["probe/Far"] == set()
    assert needs["auxiliary/Far/run00"] == {"probe/Far"}
    assert needs["target/trial0-run00"] == {"probe/Shapes"}
    assert needs["target/trial0-run01"] == {"probe/Shapes", "auxiliary/Far/run00"}
    assert needs["fusing/trial1-run02"] == {"probe/Shapes", "auxiliary/Far/run00", "auxiliary/Near/run00"}
    assert needs["vanilla/trial0-run00"] == set()
    members = {f"target/trial{trial}-run{run:02}" for trial in range(2) for run in range(3)}
    assert needs["averages/dagger"] == members
    assert needs["averages/greedy_trial1"] == {name for name in members if "trial1" in name}
    done = set()
    for task in plan.tasks:  # in an order that the graph allows
        assert needs[task.name] <= done
        done.add(task.name)
