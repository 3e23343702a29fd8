"""From verdicts to rewards; the only room that knows the verifiers."""

from mathrl.rewards.own_verifiers import require_own_verifiers

require_own_verifiers()
