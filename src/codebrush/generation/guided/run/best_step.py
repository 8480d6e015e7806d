"""Keeps the best step of a guided run by the pack's scorer, which does not guide, and ends the run when it falls.

The loss of guidance falls nearly always, and soon by textures that only the guiding CLIP takes for the prompt.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from codebrush.data.decoding.images import to_pil
from codebrush.generation.guided.guidance import Guidance, Step
from codebrush.generation.guided.guidance_state import State
from codebrush.generation.scoring import Scorer


class BestStep:
    """Looks at a batch at step 0 and then every `score_every` steps; what it keeps is in the state of guidance.

    `texts` (P, E) are the scorer's embeddings of the prompt's parts, and `weights` their weights. While guidance grows
    its pictures, or the prompts of a story still change, nothing can be compared and nothing is kept.
    """

    def __init__(self, scorer: Scorer, texts: Tensor, weights: Sequence[float], guidance: Guidance):
        self.scorer, self.texts, self.weights, self.guidance = scorer, texts, weights, guidance

    @property
    def due(self) -> bool:
        """Whether the present step is one to look at."""
        guidance, state, o = self.guidance, self.guidance.state, self.guidance.options
        grown = state.stage == len(guidance.batch.sizes) - 1
        told = guidance.batch.chapter(state.step) == guidance.batch.chapters - 1
        ends = state.finished or state.step == o.steps
        return grown and told and (ends or state.step % o.score_every == 0)

    def after(self, step: Step) -> Step:
        """The step with the scores of its pictures if it is due; it becomes the last one if they no longer rise."""
        if not self.due:
            return step
        scores, over = self.look()
        if not over:
            return replace(step, scores=tuple(scores))
        self.guidance.state.finished = True
        note = f"no better score for {step.step - max(self.guidance.state.kept_steps)} steps: stopped"
        return replace(step, scores=tuple(scores), shown=True, note=note)

    @torch.no_grad()
    def look(self) -> tuple[list[float], bool]:
        """Score the pictures of the present step and keep those that are the best so far.

        Returns the scores (B), and whether none of the pictures has become better for `score_patience` steps, which
        ends the run.
        """
        state, patience = self.guidance.state, self.guidance.options.score_patience
        latent = self.guidance.shown()[0]
        pictures = [to_pil(image) for image in self.guidance.decode(latent)]
        scores = self.scorer.scores(pictures, self.texts, self.weights)
        if state.kept is None:
            state.kept, state.kept_steps = latent.detach().clone(), [state.step] * len(scores)
            state.kept_scores, state.first_scores = list(scores), list(scores)
        for row, score in enumerate(scores):
            if score > state.kept_scores[row]:
                state.kept[row] = latent[row]
                state.kept_scores[row], state.kept_steps[row] = score, state.step
        return scores, bool(patience) and state.step - max(state.kept_steps) >= patience


def kept_steps(state: State, pictures: int) -> list[int]:
    """The step of each of the `pictures` that is kept: the last one where the scorer had no say."""
    return state.kept_steps if state.kept is not None else [state.step] * pictures
