// An answer as it grows: plain values, which the history keeps and view.js shows.

export function newTurn(question) {
  return { question, stages: [], content: "", notes: [], error: "", usage: null, state: "working" };
}

/** Add what a chunk tells; returns the name of a stage that was decided, if one was. */
export function addChunk(turn, chunk) {
  if (chunk.usage) turn.usage = chunk.usage;
  const choice = chunk.choices?.[0];
  if (!choice) return null;
  const { delta } = choice;
  if (delta.fault) turn.notes.push(`The text is not as the format wants it: ${delta.fault}`);
  if (choice.finish_reason === "length") turn.notes.push("The answer was cut before its end.");
  turn.content += delta.content ?? "";
  const reasoning = delta.reasoning_content ?? delta.reasoning ?? "";
  const decided = Array.isArray(delta.stage?.candidates);
  if (!reasoning && (!decided || isTold(turn, delta.stage))) return null;
  const stage = stageOf(turn, delta.stage ? delta.stage.name : undefined);
  stage.text += stage.text ? reasoning : reasoning.trimStart(); // the gap to the stage before
  if (!decided) return null;
  const { candidates, comparisons, score, scored_by, seconds } = delta.stage;
  Object.assign(stage, { candidates, comparisons, score, scored_by, seconds });
  return stage.name ?? "The answer";
}

/** Whether a step is a whole text that was told as it was written, and had no rival. */
function isTold(turn, { name, candidates }) {
  return name === null && candidates.length === 1 && Boolean(turn.stages.length || turn.content);
}

/** Steps of a search are told once each, so that two of one name are two; pieces of a text go on with the last one. */
function stageOf(turn, name) {
  const last = turn.stages.at(-1);
  if (last && (name === undefined || last.name === name) && !last.candidates) return last;
  const stage = { name: name ?? null, text: "" };
  turn.stages.push(stage);
  return stage;
}

/** The messages of a conversation, its image with the first of them. Turns without an answer are left out. */
export function messages(turns, question, image) {
  const told = turns.filter((turn) => turn.content && !turn.error);
  const said = told.flatMap((turn) => [
    { role: "user", content: turn.question },
    { role: "assistant", content: turn.content },
  ]);
  said.push({ role: "user", content: question });
  if (image) said[0].content = [{ type: "image_url", image_url: { url: image } }, { type: "text", text: said[0].content }];
  return said;
}
