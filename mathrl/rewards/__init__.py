"""From verdicts to rewards; the only room that knows the verifiers."""
