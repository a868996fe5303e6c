import { ponder } from "ponder:registry";
import { account } from "ponder:schema";

ponder.on("Token:Transfer", async ({ event, context }) => {
  const { from, to, amount } = event.args;
  await context.db
    .insert(account)
    .values({ address: from, balance: -amount })
    .onConflictDoUpdate((row) => ({ balance: row.balance - amount }));
  await context.db
    .insert(account)
    .values({ address: to, balance: amount })
    .onConflictDoUpdate((row) => ({ balance: row.balance + amount }));
});
