"""The jobs: plan, build, extract, train, evaluate, report, demo. The only room that imports ray."""
