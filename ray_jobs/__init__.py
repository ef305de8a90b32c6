"""The jobs: plan, build, train, evaluate, report, demo. The only room that imports ray."""
