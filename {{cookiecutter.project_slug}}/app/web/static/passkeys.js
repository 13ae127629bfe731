// A button with data-passkey asks the browser for a passkey, puts the response into the form and submits the form.
// Without JavaScript these buttons stay hidden, and the rest of the pages works.
"use strict";

const ceremonies = {
  create: (form) => {
    const options = JSON.parse(form.dataset.options);
    return navigator.credentials.create({ publicKey: PublicKeyCredential.parseCreationOptionsFromJSON(options) });
  },
  get: async (form) => {
    const body = new URLSearchParams({ csrf_token: form.elements.csrf_token.value });
    const response = await fetch("/sign-in/passkey/options", { method: "POST", body });
    if (!response.ok) throw new Error(`The options were refused with ${response.status}.`);
    const options = await response.json();
    return navigator.credentials.get({ publicKey: PublicKeyCredential.parseRequestOptionsFromJSON(options) });
  },
};

async function submitPasskey(button, field, problem) {
  const form = button.form;
  if (!form.reportValidity()) return;
  button.disabled = problem.hidden = true;
  try {
    const credential = await ceremonies[button.dataset.passkey](form);
    field.value = JSON.stringify(credential);
    field.disabled = false;
    form.submit();
  } catch {
    // Browsers report a cancelled dialog as a failure.
    problem.hidden = false;
  }
  button.disabled = false;
}

// Browsers from before 2025 do not have this method.
if (window.PublicKeyCredential?.parseCreationOptionsFromJSON) {
  for (const button of document.querySelectorAll("[data-passkey]")) {
    const [field, problem] = [button.previousElementSibling, button.nextElementSibling];
    button.addEventListener("click", () => submitPasskey(button, field, problem));
    button.hidden = false;
  }
}
