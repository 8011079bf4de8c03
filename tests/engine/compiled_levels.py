"""Says how a drafter whose levels are compiled fares; run by itself, since shape checks of the tests cannot be
compiled.
"""

import copy
import json

from tiny import llama, prompts
from tiny_vlm import built
from torch._dynamo.utils import counters

from mmspec.engine.loop import Stop, generate
from mmspec.engine.sampling import SamplingOptions
from mmspec.targets.causal import CausalTarget


def main() -> None:
    plain, target = CausalTarget(llama()), CausalTarget(llama())
    target.compiled = True
    found, reader = [], built()
    for one in (plain, target):
        for temperature in (0.0, 1.0):
            for length in (24, 20):
                sampling = SamplingOptions(temperature)
                done = generate(one, prompts([[1, 3, 4, 2]]), 1, Stop(length), reader, sampling)
                found.append((done.tokens, done.stats.rounds))
    graphs = reader._graphs
    assert graphs is not None
    copied = copy.deepcopy(reader)._graphs
    assert copied is not None
    assert target.passes is not None
    made = len(graphs.made) + len(target.passes.graphs.made)
    said = {
        "same": found[:4] == found[4:],
        "failed": graphs.failed,
        "made": list(graphs.made),
        "recompiled": counters["stats"]["unique_graphs"] - made,
        "copied": len(copied.made),
    }
    print(json.dumps(said))


if __name__ == "__main__":
    main()
