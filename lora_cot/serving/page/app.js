// The page: what a user does, and what follows from it.

import { addChunk, messages, newTurn } from "./answer.js";
import { answerChunks, ApiError, listModels } from "./api.js";
import * as history from "./history.js";
import { read } from "./images.js";
import * as settings from "./settings.js";
import { make, TurnView } from "./view.js";

const at = (id) => document.getElementById(id);
let conversation = newConversation();
let running = null; // the AbortController of an answer that is on its way

function newConversation() {
  return { id: crypto.randomUUID?.() ?? String(Math.random()), turns: [], image: null, thumbnail: null };
}

function say(text) {
  at("status").textContent = text;
}

function showError(text) {
  at("error").textContent = text;
}

function open(next) {
  running?.abort();
  conversation = next;
  at("turns").replaceChildren(...next.turns.map((turn) => new TurnView(turn).element));
  showError("");
  showPicture();
  showHistory();
}

function isImageLost() {
  return Boolean(conversation.thumbnail && !conversation.image);
}

function showPicture() {
  const { image, thumbnail } = conversation;
  at("picture").hidden = !(image || thumbnail);
  if (image || thumbnail) at("picture").src = image ?? thumbnail;
  else at("picture").removeAttribute("src");
  at("hint").textContent = isImageLost() ? "Only a thumbnail was kept: choose the image again to ask more about it." : "";
}

function showHistory() {
  const list = history.load();
  at("history").replaceChildren(...list.map(historyItem));
  at("forget").hidden = !list.length;
}

function historyItem(one) {
  const title = one.turns[0]?.question ?? "";
  const picture = one.thumbnail ? [make("img", { src: one.thumbnail, alt: "" })] : [];
  const isOpen = one.id === conversation.id;
  const button = make("button", { type: "button", class: "open", "aria-current": String(isOpen), ".onclick": () => isOpen || open(one) });
  button.append(...picture, make("span", {}, title));
  const remove = make("button", { type: "button", class: "delete", "aria-label": `Delete: ${title}` }, "×");
  remove.onclick = () => {
    history.remove(one.id);
    if (one.id === conversation.id) discard();
    showHistory();
    say("Deleted.");
    (at("history").querySelector("button") ?? at("question")).focus();
  };
  return make("li", {}, button, remove);
}

/** Leave the open conversation for a new one; an answer that is on its way to it is not kept when it ends. */
function discard() {
  conversation.isDeleted = true;
  open(newConversation());
}

async function choose(file) {
  if (!file) return;
  showError("");
  try {
    const found = await read(file);
    if (conversation.turns.length && !isImageLost()) open(newConversation());
    Object.assign(conversation, found);
    showPicture();
    say("The image is there.");
    at("question").focus();
  } catch (error) {
    showError(error.message);
  }
}

async function ask(question) {
  const asked = conversation;
  const body = {
    ...settings.read(),
    messages: messages(asked.turns, question, asked.image),
    stream: true,
    stream_options: { include_usage: true },
  };
  const turn = newTurn(question);
  asked.turns.push(turn);
  const view = new TurnView(turn);
  at("turns").append(view.element);
  view.element.scrollIntoView({ block: "nearest" });
  setRunning(new AbortController());
  say("Asked.");
  await follow(turn, view, body, running);
  if (asked.isDeleted) return;
  turn.error ? say("") : say(turn.state === "stopped" ? "Stopped." : `Answer: ${turn.content || "none"}`);
  showError(turn.error);
  if (turn.error && !at("question").value) at("question").value = question;
  if (!history.keep(asked)) at("kept").textContent = "This browser keeps nothing: questions are gone with the page.";
  showHistory();
}

async function follow(turn, view, body, controller) {
  try {
    for await (const chunk of answerChunks(body, settings.key(), controller.signal)) {
      const decided = addChunk(turn, chunk);
      if (decided) say(`${decided} is decided.`);
      view.update(turn);
    }
    turn.state = "done";
  } catch (error) {
    turn.state = controller.signal.aborted ? "stopped" : "failed";
    if (turn.state === "failed") turn.error = error instanceof ApiError ? error.message : `The answer cannot be read: ${error.message}`;
    if (error.status === 401) settings.askForKey();
  }
  if (running === controller) setRunning(null);
  view.update(turn);
}

function setRunning(controller) {
  running = controller;
  const hadFocus = [at("ask"), at("stop")].includes(document.activeElement); // what is hidden or disabled loses it
  at("ask").disabled = Boolean(controller);
  at("stop").hidden = !controller;
  if (hadFocus) at(controller ? "stop" : "question").focus();
}

function wireImages() {
  const drop = at("drop");
  at("file").onchange = (event) => choose(event.target.files[0]);
  window.addEventListener("paste", (event) => choose(event.clipboardData?.files[0]));
  window.addEventListener("dragover", (event) => {
    event.preventDefault(); // else the browser leaves the page for a file that misses the box
    drop.classList.add("over");
  });
  window.addEventListener("dragleave", () => drop.classList.remove("over"));
  window.addEventListener("drop", (event) => {
    event.preventDefault();
    drop.classList.remove("over");
    choose(event.dataTransfer.files[0]);
  });
}

function wireForm() {
  const box = at("question");
  at("form").onsubmit = (event) => {
    event.preventDefault();
    const question = box.value.trim();
    if (!question || running) return;
    showError(isImageLost() ? "Choose the image again: only a thumbnail of it was kept." : "");
    if (isImageLost()) return;
    box.value = "";
    ask(question);
  };
  box.onkeydown = (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    at("form").requestSubmit();
  };
  window.addEventListener("keydown", (event) => event.key === "Escape" && running?.abort());
  at("stop").onclick = () => running?.abort();
}

function wireHistory() {
  at("new").onclick = () => {
    open(newConversation());
    at("file").value = "";
    at("file").focus();
  };
  at("forget").onclick = () => {
    if (!confirm("Delete all earlier questions?")) return;
    history.removeAll();
    discard();
    say("All are deleted.");
  };
}

async function loadModels() {
  try {
    settings.show(await listModels(settings.key()));
    showError("");
  } catch (error) {
    showError(error.message);
    if (error.status === 401) settings.askForKey();
  }
}

wireImages();
wireForm();
wireHistory();
settings.wire(loadModels);
showHistory();
loadModels();
