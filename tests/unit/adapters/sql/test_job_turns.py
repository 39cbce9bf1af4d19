from __future__ import annotations

from headrace.adapters.sql.job_turns import JobTurn, TenantTurn, share


def _job(name: str, ready: int, *, turn: float = 0.0, priority: int = 0) -> JobTurn:
    return JobTurn(name, turn, priority, ready)


def _given(*tenants: TenantTurn) -> dict[str, int]:
    return {job.id: job.given for tenant in tenants for job in tenant.jobs}


def test_a_large_job_does_not_make_a_small_one_wait() -> None:
    tenant = TenantTurn("a", 0, 0, [_job("large", 1000), _job("small", 2)])
    share([tenant], turn=0, room=4)
    assert _given(tenant) == {"large": 2, "small": 2}


def test_what_a_small_job_leaves_is_a_large_one_s() -> None:
    tenant = TenantTurn("a", 0, 0, [_job("large", 1000), _job("small", 1)])
    share([tenant], turn=0, room=10)
    assert _given(tenant) == {"large": 9, "small": 1}


def test_a_job_of_high_priority_comes_more_often() -> None:
    tenant = TenantTurn("a", 0, 0, [_job("much", 1000, priority=10), _job("less", 1000)])
    share([tenant], turn=0, room=50)
    assert _given(tenant) == {"much": 40, "less": 10}


def test_priority_does_not_weigh_among_tenants() -> None:
    urgent = TenantTurn("a", 0, 0, [_job("urgent", 1000, priority=10)])
    idle = TenantTurn("b", 0, 0, [_job("idle", 1000, priority=-10)])
    share([urgent, idle], turn=0, room=10)
    assert _given(urgent, idle) == {"urgent": 5, "idle": 5}
    assert urgent.turn == idle.turn == 5


def test_many_jobs_of_a_tenant_have_the_share_of_one_of_another() -> None:
    many = TenantTurn("a", 0, 0, [_job(f"{n}", 5) for n in range(8)])
    one = TenantTurn("b", 0, 0, [_job("one", 100)])
    share([many, one], turn=0, room=16)
    assert sum(job.given for job in many.jobs) == one.jobs[0].given == 8


def test_who_comes_anew_begins_where_the_others_are() -> None:
    old = TenantTurn("a", 100, 0, [_job("old", 100)])
    new = TenantTurn("b", 0, 0, [_job("new", 100)])
    turn = share([old, new], turn=100, room=10)
    assert _given(old, new) == {"old": 5, "new": 5}
    assert turn == 104


def test_a_new_job_begins_where_those_of_its_tenant_are() -> None:
    tenant = TenantTurn("a", 0, 50, [_job("new", 100), _job("old", 100, turn=50)])
    share([tenant], turn=0, room=10)
    assert _given(tenant) == {"new": 5, "old": 5}
    assert tenant.job_turn == 54


def test_nothing_is_given_where_nothing_is_ready() -> None:
    tenant = TenantTurn("a", 3, 2, [_job("idle", 0)])
    assert share([tenant], turn=7, room=10) == 7
    assert (tenant.turn, tenant.job_turn) == (3, 2)
