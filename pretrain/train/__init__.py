"""Training one stage: data, engine, loop, health, telemetry."""
