const dialog = document.querySelector("dialog");
const stage = dialog.querySelector("img");
const choices = dialog.querySelector(".choices");
let images = [], shown = 0;
const show = (index) => {
  shown = (index + images.length) % images.length;
  stage.src = images[shown].src;
  stage.alt = images[shown].alt;
  stage.style.width = images[shown].naturalWidth + "px";
  [...choices.children].forEach((button, i) => button.setAttribute("aria-pressed", i === shown));
};
for (const group of document.querySelectorAll(".pictures")) {
  const members = [...group.querySelectorAll("img")];
  members.forEach((image, index) => image.parentElement.addEventListener("click", () => {
    images = members;
    choices.replaceChildren(...members.map((member, i) => {
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = member.alt;
      button.addEventListener("click", () => show(i));
      return button;
    }));
    show(index);
    dialog.showModal();
  }));
}
dialog.querySelector(".close").addEventListener("click", () => dialog.close());
dialog.querySelector(".stage").addEventListener("click", () => show(shown + 1));
dialog.addEventListener("keydown", (event) => {
  if (event.key === "ArrowRight" || event.key === "ArrowLeft") {
    event.preventDefault();
    show(shown + (event.key === "ArrowRight" ? 1 : -1));
  }
});
for (const button of document.querySelectorAll("button.copy")) {
  const text = button.parentElement.querySelector("pre");
  button.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(text.textContent);
      button.textContent = "Copied";
    } catch {
      getSelection().selectAllChildren(text);
      button.textContent = "Selected";
    }
  });
}
