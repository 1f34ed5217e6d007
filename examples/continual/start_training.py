"""Five updates, two new digits each: what plain training forgets, and what replay keeps."""

from pathlib import Path

from luthier.tuning import run_training_job

CONFIG = Path(__file__).parent / "digits_config.py"
SPACE = {"optimizer": "SGD", "momentum": 0.9, "learning_rate": 0.05, "batch_size": 32}

for updater in ("FineTuning", "Robust-DER"):
    state = Path("states") / updater
    memory = {} if updater == "FineTuning" else {"memory_size": 100}
    for chunk in range(5):
        run = run_training_job(
            config_file=CONFIG,
            config_space=SPACE | memory,
            updater=updater,
            max_epochs=10,
            chunk_id=chunk,
            input_state_url=state if chunk else None,
            output_state_url=state,
        )
    update = run.metrics()["update"]
    print(f"{updater}: mean accuracy {update['average']:.3f}, forgotten {update['forgetting']:.3f}")
    for row in update["matrix"]:
        print("  " + " ".join(f"{accuracy:.2f}" for accuracy in row))
