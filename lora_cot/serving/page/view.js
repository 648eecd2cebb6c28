// Turns on the page. Whatever a model, a user or a server wrote becomes text, never markup.

const ENDED = {
  stop: "closed",
  sentence: "ended a sentence",
  end: "ended",
  length: "cut at its tokens",
  deadline: "cut by the deadline",
  failed: "failed",
};

/** An element with attributes, properties that begin with a dot, and children: elements or texts. */
export function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith(".")) element[name.slice(1)] = value;
    else if (value !== null && value !== false) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children);
  return element;
}

/** One question and its answer. */
export class TurnView {
  constructor(turn) {
    this.stages = make("div");
    this.answerText = make("p", { class: "text" });
    this.answer = make("section", { class: "answer", hidden: true }, make("h3", {}, "Answer"), this.answerText);
    this.notes = make("div");
    this.element = make("article", { class: "turn" }, make("h2", {}, turn.question), this.stages, this.answer, this.notes);
    this.update(turn);
  }

  update(turn) {
    this.element.classList.toggle("working", turn.state === "working");
    this.element.setAttribute("aria-busy", String(turn.state === "working"));
    turn.stages.forEach((stage, place) => showStage(this.stages.children[place] ?? this.stages.appendChild(newStage(stage)), stage));
    this.answer.hidden = !turn.content;
    this.answerText.textContent = turn.content;
    const notes = turn.notes.map((note) => make("p", { class: "quiet" }, note));
    if (turn.state === "stopped") notes.push(make("p", { class: "quiet" }, "Stopped."));
    if (turn.usage) notes.push(make("p", { class: "quiet" }, costs(turn.usage)));
    if (turn.error) notes.push(make("p", { class: "error" }, turn.error));
    this.notes.replaceChildren(...notes);
  }
}

function newStage(stage) {
  return make("section", { class: "stage" }, make("h3", {}, stage.name ?? "Whole answer"), make("p", { class: "text" }));
}

function showStage(element, stage) {
  element.querySelector(":scope > .text").textContent = stage.text;
  if (stage.candidates && !element.querySelector(".candidates")) element.append(candidatesOf(stage));
}

function candidatesOf(stage) {
  const place = stage.candidates.findIndex((one) => one.chosen);
  const many = stage.candidates.length > 1;
  const summary = many ? `${stage.candidates.length} candidates, number ${place + 1} chosen` : "1 candidate";
  const list = make("ol", {}, ...stage.candidates.map((one) => candidateOf(one, stage)));
  const verdicts = (stage.comparisons ?? []).map((one) => make("li", {}, verdict(one)));
  const judged = verdicts.length ? [make("h3", {}, "What the judge said"), make("ul", { class: "verdicts" }, ...verdicts)] : [];
  return make("details", { class: "candidates" }, make("summary", {}, summary), list, ...judged);
}

function candidateOf(one, stage) {
  const facts = [score(one.score, stage.scored_by), `${one.tokens} tokens`, ENDED[one.ended] ?? one.ended];
  if (one.answer !== null && one.answer !== undefined) facts.push(`votes for ${one.answer}`);
  if (one.problem) facts.push(one.problem);
  const head = make("span", { class: one.closed ? "quiet" : "quiet error" }, facts.join(" · "));
  const chosen = one.chosen ? [make("strong", { class: "good" }, "✓ chosen "), head] : [head];
  return make("li", { class: one.chosen ? "chosen" : "" }, ...bar(one, stage), ...chosen, make("p", { class: "text" }, one.text.trim() || "no text"));
}

function bar(one, stage) {
  if (typeof one.score !== "number") return [];
  const scores = stage.candidates.map((other) => other.score).filter((value) => typeof value === "number");
  const low = Math.min(0, ...scores);
  const share = stage.scored_by === "logprob" ? Math.exp(one.score) : (one.score - low) / (Math.max(...scores) - low || 1);
  return [make("meter", { min: 0, max: 1, value: share, "aria-hidden": "true" }), " "];
}

function score(value, unit) {
  if (typeof value !== "number") return "not in the contest";
  if (unit === "wins") return value === 1 ? "1 win" : `${value} wins`;
  return unit === "logprob" ? `${value.toFixed(2)} nats a token` : `${value.toPrecision(3)} ${unit}`;
}

function verdict(one) {
  const loser = one.winner === one.first ? one.second : one.first;
  const told = `${one.winner + 1} before ${loser + 1}`;
  if (one.failed) return `${told}, by likelihood: the verdict could not be read`;
  if (one.flipped) return `${told}, by likelihood: the verdict changed with the order`;
  return one.margin === null ? told : `${told} by ${Math.abs(one.margin).toFixed(2)} log-odds`;
}

function costs(usage) {
  const { search } = usage;
  if (!search) return `${usage.completion_tokens} tokens`;
  const told = [`${usage.completion_tokens} tokens kept of ${search.generated_tokens} generated`, search.strategy];
  if (search.calls?.judge) told.push(`${search.calls.judge} questions to the judge`);
  if (search.judge_failures) told.push(`${search.judge_failures} without a verdict`);
  if (search.stopped && search.stopped !== "complete") told.push(`stopped early: ${search.stopped}`);
  return told.join(" · ");
}
