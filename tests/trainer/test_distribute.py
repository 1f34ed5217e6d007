"""Who of several processes this one is."""

import pytest

from luthier.engine.distribute import Distribution, adopt_mpi, alone, distribution
from luthier.errors import SpecError

MPI = {
    "OMPI_COMM_WORLD_RANK": "3", "OMPI_COMM_WORLD_SIZE": "4",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1", "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
}  # fmt: skip


def test_one_process_without_a_launcher() -> None:
    assert distribution({}) == Distribution(0, 1, 0, 1)
    assert distribution({}).instances == 1


def test_processes_of_an_instance_times_instances() -> None:
    given = {"RANK": "5", "WORLD_SIZE": "6", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}
    assert distribution(given) == Distribution(5, 6, 1, 2)
    assert distribution(given).instances == 3


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"RANK": "2", "WORLD_SIZE": "2"}, "RANK"),
        ({"RANK": "x"}, "RANK"),
        ({"WORLD_SIZE": "3", "LOCAL_WORLD_SIZE": "2"}, "LOCAL_WORLD_SIZE"),
        ({"WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "0"}, "LOCAL_WORLD_SIZE"),
        ({"WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2", "LOCAL_RANK": "2"}, "LOCAL_RANK"),
    ],
)
def test_numbers_that_do_not_fit(given, named) -> None:
    with pytest.raises(SpecError) as error:
        distribution(given)
    assert named in {problem.field for problem in error.value.problems}


def test_open_mpi_in_the_names_of_torch() -> None:
    given = MPI | {"MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "4000"}
    assert adopt_mpi(given)
    assert distribution(given) == Distribution(3, 4, 1, 2)
    assert (given["MASTER_ADDR"], given["MASTER_PORT"]) == ("10.0.0.1", "4000")


def test_one_instance_meets_on_the_loopback_by_a_port_of_its_launch() -> None:
    one = MPI | {"OMPI_COMM_WORLD_LOCAL_SIZE": "4", "OMPI_COMM_WORLD_LOCAL_RANK": "3"}
    ports = []
    for rank, launch in (("0", "a@1"), ("3", "a@1"), ("0", "b@1"), ("0", None)):
        given = one | {"OMPI_COMM_WORLD_RANK": rank, "OMPI_COMM_WORLD_LOCAL_RANK": rank}
        given |= {} if launch is None else {"PMIX_NAMESPACE": launch}
        assert adopt_mpi(given)
        assert given["MASTER_ADDR"] == "127.0.0.1"
        ports.append(given["MASTER_PORT"])
    assert ports[0] == ports[1] != ports[2]
    assert ports[3] == "29500"


def test_several_instances_must_be_told_where_to_meet() -> None:
    given = dict(MPI)
    with pytest.raises(SpecError, match="MASTER_ADDR"):
        adopt_mpi(given)
    assert given == MPI


def test_what_torchrun_said_stays() -> None:
    given = MPI | {"RANK": "0", "WORLD_SIZE": "1"}
    before = dict(given)
    assert not adopt_mpi(given)
    assert not adopt_mpi({})
    assert given == before


def test_a_group_of_one() -> None:
    given: dict[str, str] = {}
    assert alone(given)
    assert distribution(given) == Distribution(0, 1, 0, 1)
    assert int(given["MASTER_PORT"]) > 0
    before = dict(given)
    assert not alone(given)
    assert given == before
