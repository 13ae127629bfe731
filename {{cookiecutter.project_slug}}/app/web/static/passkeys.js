// A button with data-passkey asks the browser for a passkey, puts its answer into the form and sends it. Without
// JavaScript these buttons stay hidden, and the rest of the pages works as ever.
"use strict";

const ceremonies = {
  create: (form) => {
    const options = JSON.parse(form.dataset.options);
    return navigator.credentials.create({ publicKey: PublicKeyCredential.parseCreationOptionsFromJSON(options) });
  },
  get: async (form) => {
    const body = new URLSearchParams({ csrf_token: form.elements.csrf_token.value });
    const answer = await fetch("/sign-in/passkey/options", { method: "POST", body });
    if (!answer.ok) throw new Error(`The options were refused with ${answer.status}.`);
    const options = await answer.json();
    return navigator.credentials.get({ publicKey: PublicKeyCredential.parseRequestOptionsFromJSON(options) });
  },
};

async function answer(button, field, problem) {
  const form = button.form;
  if (!form.reportValidity()) return;
  button.disabled = problem.hidden = true;
  try {
    const credential = await ceremonies[button.dataset.passkey](form);
    field.value = JSON.stringify(credential);
    field.disabled = false;
    form.submit();
  } catch {
    // Also when the person has changed their mind, which browsers do not tell from a failure.
    problem.hidden = false;
  }
  button.disabled = false;
}

// Browsers of before 2025 lack it.
if (window.PublicKeyCredential?.parseCreationOptionsFromJSON) {
  for (const button of document.querySelectorAll("[data-passkey]")) {
    const [field, problem] = [button.previousElementSibling, button.nextElementSibling];
    button.addEventListener("click", () => answer(button, field, problem));
    button.hidden = false;
  }
}
