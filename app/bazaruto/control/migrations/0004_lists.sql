-- Lists of an environment's runs stay as fast when there are many of others.

CREATE INDEX runs_by_environment ON runs (environment, position);
