"""A vLLM engine on the CPU that all tests share; torch is loaded by those that ask for it."""

import pytest


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory):
    from vllm_engines import write_model

    return write_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="session")
def policy(model_folder):
    from vllm_engines import make_policy

    return make_policy(model_folder)


@pytest.fixture(scope="session")
def engine(model_folder, policy):
    from vllm_engines import close, start_engine

    engine = start_engine(model_folder, policy)
    yield engine
    assert all(process.is_alive() for process in engine.client.processes)
    close(engine)


@pytest.fixture
def synced(engine, policy):
    """The engine with the policy's adapter."""
    engine.load(policy.adapter(), policy.version)
    return engine
