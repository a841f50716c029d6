import pandas as pd
from lenskit.batch import recommend
from lenskit.data import from_interactions_df
from lenskit.flexmf import FlexMFImplicitScorer
from lenskit.pipeline import topn_pipeline

data = from_interactions_df(pd.read_csv("train.csv"), user_col="user", item_col="item")
pipeline = topn_pipeline(FlexMFImplicitScorer(loss="logistic"), n=10)
pipeline.train(data)
recommend(pipeline, data.users.ids(), n_jobs=1).to_df().to_csv("top.csv", index=False)
